"""What every online store promises, on SQLite and on a real Redis."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.aggregations import Count, LastN, TimeSince
from data.dataset import Dataset, write_dataset
from data.events import FIRST_APPENDED_ROW
from data.features import views
from data.online import materialization
from data.online.store import OnlineStore, open_online_store, require_same_features
from data.quality.validation import polars_schema
from data.schema import ITEMS, QUARANTINE, USERS
from data.temporal.point_in_time import features_of
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView
from tests.data.conftest import START, Row, events_of

ROWS: list[Row] = [("anna", "x", 1.0, 5), ("anna", "y", 2.0, 1), ("Борис/ '\"\0", "x", 3.5, 1), ("anna", "x", 4.0, 1)]
NOW = datetime(2024, 1, 2, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""After the ingest times that the store gives."""
NEVER = 2**63 - 1
RECENCY = {"user_recent_weight", "item_recent_weight"}

Publish = Callable[..., int]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another test started Ray: what is patched here is so in this process only."""
    monkeypatch.setattr(materialization, "_has_session", lambda: False)


def write(home: Path, events: pl.DataFrame, ages: dict[str, int] | None = None) -> Dataset:
    ages = {"anna": 30} if ages is None else ages
    users = pl.DataFrame(
        {"user_id": list(ages), "attributes": [[f"age={age}"] for age in ages.values()]}, schema=polars_schema(USERS)
    )
    empty = {
        name: pl.DataFrame(schema=polars_schema(kind))
        for name, kind in {"items": ITEMS, "quarantine": QUARANTINE}.items()
    }
    return write_dataset(home, "small", events=events, users=users, **empty, source="a test")


@pytest.fixture
def publish(store: OnlineStore, tmp_path: Path) -> Publish:
    return lambda events, **more: store.publish(write(tmp_path, events, **more))


def expected(entity: Entity, ids: list[str], events: pl.DataFrame, at: datetime) -> pl.DataFrame:
    keys = pl.DataFrame({"event_time": [at] * len(ids), "source_row": [NEVER] * len(ids)}).with_columns(
        pl.col("event_time").cast(pl.Datetime("us", "UTC"))
    )
    if entity.key is not None:
        keys = keys.with_columns(pl.Series(entity.key, ids))
    mine = [view for view in views() if view.entity == entity]
    return features_of(mine, events, keys).select(name for view in mine for name in view.features)


def assert_online_equals_offline(store: OnlineStore, events: pl.DataFrame, at: datetime) -> None:
    for entity in (USER, ITEM, EVERYTHING):
        ids = [""] if entity.key is None else [*events[entity.key].unique().to_list(), "nobody"]
        found, wanted = store.read(entity, ids, at), expected(entity, ids, events, at)
        exact = [name for name in wanted.columns if name not in RECENCY]
        assert_frame_equal(found.select(exact), wanted.select(exact), check_exact=True)
        assert_frame_equal(found.select(wanted.columns), wanted, rel_tol=1e-5, abs_tol=1e-30)
        numbers = store.read_numbers(entity, ids, at)
        for place, name in enumerate(store.scalar_features(entity)):
            np.testing.assert_allclose(numbers[:, place], wanted[name].to_numpy(), rtol=1e-6, atol=1e-30)


def test_a_new_store_knows_nobody(store: OnlineStore) -> None:
    assert store.published_version() is None
    assert store.fingerprints() == {}
    frame = store.read(USER, ["anna"], NOW)
    assert frame.select("user_id", "history_items", "user_event_count", "known", "known_until").rows() == [
        ("anna", [], 0, False, None)
    ]
    assert store.read(ITEM, [], NOW).height == 0
    assert store.read_numbers(ITEM, [], NOW).shape == (0, len(store.scalar_features(ITEM)))
    assert store.seen_items(["anna"]) == [frozenset()]
    assert store.user_attributes(["anna"]).is_empty()
    assert store.appended_events().is_empty()


def test_what_was_published_is_read(store: OnlineStore, publish: Publish) -> None:
    events = events_of(ROWS)
    assert publish(events) == 4
    assert_online_equals_offline(store, events, NOW)
    assert_online_equals_offline(store, events, NOW + timedelta(days=400))
    asked = ["nobody", "anna", ROWS[2][0], "anna"]
    frame = store.read(USER, asked, NOW, ["user_event_count"])
    assert frame.columns == ["user_id", "user_event_count", "known", "known_until"]
    assert frame["user_id"].to_list() == asked
    assert frame["user_event_count"].to_list() == [0, 3, 1, 3]
    assert frame["known"].to_list() == [False, True, True, True]
    assert frame["known_until"].to_list()[:2] == [None, START + timedelta(seconds=5)]
    assert store.seen_items(asked) == [frozenset(), {"x", "y"}, {"x"}, {"x", "y"}]
    assert store.user_attributes(["nobody", "anna"]).rows() == [("anna", ["age=30"])]
    assert set(store.fingerprints()) == {view.name for view in views()}


def test_an_appended_event_is_read_at_once(store: OnlineStore, publish: Publish) -> None:
    events = events_of(ROWS)
    publish(events)
    new = events_of([("anna", "z", 2.5, 40), ("new", "x", 1.5, 2), ("anna", "y", 1.0, 5)])
    other = pickle.loads(pickle.dumps(store))
    assert other.append_events(new) == 3
    other.close()
    assert_online_equals_offline(store, pl.concat([events, store.appended_events()]), NOW)
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y", "x", "x", "y", "z"]]
    assert store.seen_items(["anna", "new"]) == [{"x", "y", "z"}, {"x"}]
    assert store.appended_events()["source_row"].to_list() == [FIRST_APPENDED_ROW + place for place in range(3)]


def test_events_can_be_appended_before_anything_is_published(store: OnlineStore, publish: Publish) -> None:
    events = events_of(ROWS)
    assert store.append_events(events) == 4
    assert_online_equals_offline(store, events, NOW)
    assert store.published_version() is None
    assert publish(events_of([("anna", "w", 1.0, 9)])) == 5
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y", "x", "x", "w"]]


def test_an_event_counts_once(store: OnlineStore, publish: Publish) -> None:
    events = events_of(ROWS)
    publish(events)
    assert store.append_events(events) == 0
    new = events_of([("anna", "z", 2.5, 40)])
    assert store.append_events(pl.concat([new, new])) == 1
    assert store.append_events(pl.concat([new, events])) == 0
    assert store.read(USER, ["anna"], NOW)["user_event_count"].to_list() == [4]
    assert store.append_events(new.clear()) == 0


def test_the_store_stamps_what_has_no_ingest_time(store: OnlineStore) -> None:
    before = datetime.now(UTC)
    new = events_of([("anna", "z", 2.5, second) for second in range(5)])
    store.append_events(new[:3].drop("ingest_time", "source_row"))
    store.append_events(new[3:].with_columns(ingest_time=pl.lit(None, dtype=pl.Datetime("us", "UTC"))))
    stamps = store.appended_events()["ingest_time"].to_list()
    assert stamps == sorted(set(stamps))
    assert before <= stamps[0] <= stamps[-1] <= datetime.now(UTC)
    assert store.read(USER, ["anna"], NOW)["known_until"].to_list() == [stamps[-1]]


def test_events_that_break_the_contract_are_refused_as_a_whole(store: OnlineStore) -> None:
    new = events_of([("anna", "z", 2.5, 1), ("anna", "y", 2.5, 1)])
    with pytest.raises(TowerlineError, match="1 of 2 events have no item_id; none was stored"):
        store.append_events(new.with_columns(item_id=pl.Series(["z", None])))
    assert store.appended_events().is_empty()


def test_publishing_again_keeps_what_was_appended(store: OnlineStore, publish: Publish) -> None:
    publish(events_of(ROWS))
    appended = events_of([("anna", "fresh", 1.0, 8), ("anna", "known by now", 1.0, 9)])
    store.append_events(appended)
    events = events_of([ROWS[1], ("anna", "known by now", 1.0, 9)])
    assert publish(events, ages={"anna": 31, "eva": 5}) == 3
    assert store.appended_events()["item_id"].to_list() == ["fresh"]
    assert_online_equals_offline(store, pl.concat([events, store.appended_events()]), NOW)
    assert store.seen_items(["anna", ROWS[2][0]]) == [{"y", "fresh", "known by now"}, frozenset()]
    assert store.user_attributes(["eva", "anna"]).rows() == [("eva", ["age=5"]), ("anna", ["age=31"])]
    assert store.append_events(appended) == 0


def test_the_same_version_is_not_published_again(
    store: OnlineStore, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(events_of(ROWS))
    version = store.published_version()
    monkeypatch.setattr("data.dataset.Dataset.bucket", None)
    assert publish(events_of(ROWS)) == 4
    assert store.published_version() == version


def test_only_what_a_version_adds_is_applied(
    store: OnlineStore, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An appended event that the data set brings as it is stays where it is."""
    events = events_of(ROWS)
    publish(events)
    store.append_events(events_of([("anna", "z", 1.0, 8), ("anna", "v", 1.0, 8)]).drop("ingest_time", "source_row"))
    added = events_of([("anna", "w", 2.0, 3), ("olga", "x", 1.0, 4)]).with_columns(pl.col("source_row") + 2**36)
    brought = store.appended_events()[:1]
    whole = pl.concat([events, added, brought])
    with monkeypatch.context() as patched:
        patched.setattr("data.online.materialization._states_of_bucket", None)
        assert publish(whole, ages={"olga": 50}) == 8
    assert store.appended_events()["item_id"].to_list() == ["v"]
    assert_online_equals_offline(store, pl.concat([whole, store.appended_events()]), LATER)
    assert store.user_attributes(["anna", "olga"]).rows() == [("olga", ["age=50"])]
    assert store.seen_items(["olga"]) == [{"x"}]
    assert store.append_events(whole) == 0


def test_a_version_that_changes_an_event_is_published_as_a_whole(store: OnlineStore, publish: Publish) -> None:
    publish(events_of(ROWS))
    changed = events_of(ROWS).with_columns(value=pl.col("value") + 1)
    publish(changed)
    assert_online_equals_offline(store, changed, NOW)


def test_a_killed_publication_leaves_the_old_version_and_is_taken_up(
    store: OnlineStore, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = events_of(ROWS), events_of([(f"u{row}", "x", 1.0, row) for row in range(40)])
    publish(old)
    version = store.published_version()
    original, done = materialization._states_of_bucket, []

    def dying(*arguments: object) -> object:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(arguments[-1])
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("data.online.materialization._has_session", lambda: False)
        patched.setattr("data.online.materialization._states_of_bucket", dying)
        with pytest.raises(KeyboardInterrupt):
            publish(new)
    assert store.published_version() == version
    assert_online_equals_offline(store, old, NOW)
    store.append_events(events_of([("meanwhile", "x", 1.0, 50)]).drop("ingest_time"))
    again: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr("data.online.materialization._has_session", lambda: False)
        patched.setattr("data.online.materialization._states_of_bucket", lambda *a: again.append(a[-1]) or original(*a))
        assert publish(new) == 41
    assert len(again) == 3
    assert_online_equals_offline(store, pl.concat([new, store.appended_events()]), LATER)


OTHER = (
    FeatureView(
        name="user_activity",
        entity=USER,
        description="",
        owner="",
        features={"events": Count(), "last": LastN("item_id", 2), "since": TimeSince()},
    ),
)


def test_other_definitions_are_a_version_of_their_own(
    settings: Settings, store: OnlineStore, publish: Publish, tmp_path: Path
) -> None:
    publish(events_of(ROWS))
    other = open_online_store(settings, "small", OTHER)
    with pytest.raises(TowerlineError, match=r"other definitions .*user_activity \w{16} there, \w{16} here.*publish"):
        other.read(USER, ["anna"], NOW)
    assert other.published_version() is None
    assert other.append_events(events_of([("anna", "z", 1.0, 8)])) == 1
    other.publish(write(tmp_path, events_of(ROWS)))
    assert other.read(USER, ["anna"], NOW).select("events", "last").rows() == [(4, ["x", "z"])]
    assert set(other.fingerprints()) == {"user_activity"}
    store.append_events(events_of([("anna", "v", 1.0, 9)]))
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y", "x", "x", "z", "v"]]
    other.publish(write(tmp_path, events_of(ROWS[:3])))
    with pytest.raises(TowerlineError, match="other definitions"):
        store.read(USER, ["anna"], NOW)


def test_an_address_that_is_no_redis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"TOWERLINE_ONLINE_STORE is 'mysql://x'; expected redis://"):
        Settings(home=tmp_path, online_store="mysql://x")


def test_events_that_nobody_else_is_told_of(store: OnlineStore, publish: Publish) -> None:
    events = events_of(ROWS)
    publish(events)
    extra = {row: events_of([("", f"brought {row}", 1.0, 8)]) for row in (0, 2)}
    frame = store.read(USER, ["anna", "anna", "nobody"], NOW, extra=extra)
    assert frame["history_items"].to_list() == [["y", "x", "x", "brought 0"], ["y", "x", "x"], ["brought 2"]]
    assert frame["user_distinct_items_30d"].to_list() == [3, 2, 1]
    assert_online_equals_offline(store, events, NOW)


def test_whoever_feeds_a_store_has_the_features_that_are_read(
    settings: Settings, store: OnlineStore, publish: Publish
) -> None:
    require_same_features(store, "small", views())
    store.append_events(events_of([("first", "x", 1.0, 9)]).drop("ingest_time"))
    require_same_features(store, "small", views())
    publish(events_of(ROWS))
    require_same_features(store, "small", views())
    shorter = open_online_store(settings, "small", views(20))
    with pytest.raises(TowerlineError, match=r"user_activity \w{16}.*--history-length"):
        require_same_features(shorter, "small", views(20))
