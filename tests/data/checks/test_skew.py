"""Reads of a real online store are compared with the events, feature by feature."""

import dataclasses
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from cluster.settings import Settings
from data.checks.skew import DIFFERENCES, LoggedReads, find_skew
from data.checks.skew_table import print_skew
from data.dataset import Dataset, write_dataset
from data.features import TIME, views, with_item_share
from data.online.brought import BROUGHT_ITEMS, BROUGHT_VALUE, brought_events
from data.online.store import OnlineStore, open_online_store
from data.quality.validation import polars_schema
from data.schema import EVENTS, ITEMS, QUARANTINE, USERS
from data.views import EVERYTHING, ITEM, USER

START = datetime(2024, 5, 1, tzinfo=UTC)
NOW = datetime.now(UTC)
IDS = [f"user {number}" for number in range(12)]
ITEM_IDS = [f"item {number}" for number in range(8)]
VIEWS = views(5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = 200
    number = pl.col("source_row")
    events = pl.DataFrame({"source_row": range(rows)}, schema={"source_row": pl.Int64}).with_columns(
        event_id=pl.format("e{}", number),
        user_id=pl.format("user {}", number % 11),
        item_id=pl.format("item {}", number * 3 % 7),
        event_type=pl.lit("view"),
        value=(number % 5 + 0.25).cast(pl.Float32),
        event_time=(pl.lit(START) + pl.duration(hours=number // 3)).cast(TIME),
        decision_id=pl.lit(None, dtype=pl.String),
    )
    return write_dataset(
        tmp_path_factory.mktemp("home"),
        "clicks",
        events=events.with_columns(ingest_time="event_time").select(EVENTS.names),
        items=pl.DataFrame(schema=polars_schema(ITEMS)),
        users=pl.DataFrame({"user_id": ["user 3"], "attributes": [["age=9"]]}, schema=polars_schema(USERS)),
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )


@pytest.fixture(scope="module")
def store(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OnlineStore:
    """The data set, and events of the last minutes."""
    store = open_online_store(Settings(home=tmp_path_factory.mktemp("online")), "clicks", VIEWS)
    store.publish(dataset)
    recent = dataset.events()[:9].with_columns(
        event_id=pl.format("new {}", "source_row"),
        event_time=(pl.lit(NOW) - pl.duration(minutes=pl.col("source_row") * 7)).cast(TIME),
    )
    store.append_events(recent.select(pl.exclude("ingest_time", "source_row", "split")))
    return store


@pytest.fixture(scope="module")
def logged(store: OnlineStore) -> LoggedReads:
    """One decision for each user, over all items, the last with two items of its own."""
    at = datetime.now(UTC)
    moment = pl.lit(at).cast(TIME).alias("event_time")
    ids = [f"d{number}" for number in range(len(IDS))]
    everything = pl.concat([store.read(EVERYTHING, [""], at)] * len(IDS))
    last = len(IDS) - 1
    extra = {last: brought_events(IDS[last], ["item 1", "item 2"], 2.5, at)}
    attributes = [["age=9"] if user == "user 3" else [] for user in IDS]
    users = store.read(USER, IDS, at, extra=extra).with_columns(
        moment,
        pl.Series("decision_id", ids),
        pl.Series(BROUGHT_ITEMS, [[]] * last + [["item 1", "item 2"]], dtype=pl.List(pl.String)),
        pl.Series(BROUGHT_VALUE, [2.5] * len(IDS), dtype=pl.Float32),
        pl.Series("user_attributes", attributes, dtype=pl.List(pl.String)),
    )
    counted = everything["counted_events"][0]
    of_items = with_item_share(store.read(ITEM, ITEM_IDS, at).with_columns(counted_events=pl.lit(counted)))
    items = pl.concat([of_items.with_columns(moment, pl.lit(each).alias("decision_id")) for each in ids])
    return LoggedReads(users, items, everything.with_columns(moment, pl.Series("decision_id", ids)))


def test_what_was_read_is_what_the_events_give(dataset: Dataset, store: OnlineStore, logged: LoggedReads) -> None:
    skew = find_skew(dataset, store.appended_events(), VIEWS, logged)
    assert not skew.differences.rows()
    assert skew.differences.schema == DIFFERENCES
    assert skew.compared["user_mean_value"] == 12
    assert skew.compared["item_share"] == 96
    assert logged.users["user_events_1h"].max() > 0
    figures = skew.figures()
    assert (figures["decisions"], figures["values"], figures["differences"]) == (12, skew.values, 0)


@pytest.mark.parametrize(("factor", "differs"), [(1 + 2e-7, False), (1.001, True)])
def test_recency_weighted_sums_may_round(
    dataset: Dataset, store: OnlineStore, logged: LoggedReads, factor: float, differs: bool
) -> None:
    moved = dataclasses.replace(logged, users=logged.users.with_columns(pl.col("user_recent_weight") * factor))
    skew = find_skew(dataset, store.appended_events(), VIEWS, moved)
    assert (skew.differences.height > 0) == differs
    assert set(skew.differences["feature"]) <= {"user_recent_weight"}


def test_all_else_is_exact(
    dataset: Dataset, store: OnlineStore, logged: LoggedReads, capsys: pytest.CaptureFixture[str]
) -> None:
    """One microsecond off, in one of twelve values."""
    off = pl.when(pl.col("user_id") == "user 3").then(1e-6).otherwise(0.0)
    moved = dataclasses.replace(logged, users=logged.users.with_columns(pl.col("user_seconds_since_last") + off))
    skew = find_skew(dataset, store.appended_events(), VIEWS, moved)
    ((decision, entity, user, feature, online, offline),) = skew.differences.rows()
    assert (decision, entity, user, feature) == ("d3", "user", "user 3", "user_seconds_since_last")
    assert 0 < float(online) - float(offline) < 2e-6
    print_skew(skew)
    assert "user 3" in capsys.readouterr().out


def test_a_late_event_that_was_read_is_missed_where_it_is_not_known(
    dataset: Dataset, store: OnlineStore, logged: LoggedReads
) -> None:
    skew = find_skew(dataset, store.appended_events()[1:], VIEWS, logged)
    lost = store.appended_events().row(0, named=True)
    touched = set(skew.differences["id"])
    assert {lost["user_id"], lost["item_id"], ""} <= touched
    assert timedelta() < datetime.now(UTC) - lost["ingest_time"] < timedelta(hours=1)
