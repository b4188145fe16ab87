"""Any history of publishing, appending, sending twice and starting anew leaves what was computed from all events."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.aggregations import Count, Distinct, LastN, Mean, TimeSince, days, hours
from data.dataset import write_dataset
from data.online.store import OnlineStore
from data.online.stores.redis import RedisStore
from data.online.stores.sqlite import SqliteStore
from data.quality.validation import polars_schema
from data.schema import ITEMS, QUARANTINE, USERS
from data.temporal.point_in_time import features_of
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView
from tests.data.conftest import START, events_of

LATER = datetime(2100, 1, 1, tzinfo=UTC)
EMPTY = {
    name: pl.DataFrame(schema=polars_schema(contract))
    for name, contract in {"items": ITEMS, "users": USERS, "quarantine": QUARANTINE}.items()
}
EVENTS = events_of([(f"u{row % 3}", f"i{row * row % 5}", float(row % 4), 1800 * (row * 7 % 13)) for row in range(24)])


def view(entity: Entity) -> FeatureView:
    features = {
        f"{entity.name}_hour": Count(hours(2)),
        f"{entity.name}_all": Count(),
        f"{entity.name}_mean": Mean("value", days(1)),
        f"{entity.name}_users": Distinct("user_id", hours(6)),
        f"{entity.name}_last": LastN("item_id", 3),
        f"{entity.name}_since": TimeSince(),
    }
    return FeatureView(name=entity.name, entity=entity, features=features, description="", owner="")


VIEWS = tuple(view(entity) for entity in (USER, ITEM, EVERYTHING))

ROWS = st.lists(st.integers(0, EVENTS.height - 1), min_size=1, max_size=8, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "publish", "ingest what was appended", "restart"]), ROWS), max_size=6
)


def history(store: OnlineStore, home: Path, steps: list[tuple[str, list[int]]]) -> pl.DataFrame:
    """Take the steps; the events that must be known at the end."""
    dataset = EVENTS.clear()
    for step, rows in steps:
        chosen = EVENTS[sorted(rows)]
        match step:
            case "append":
                known = {*dataset["event_id"], *store.appended_events()["event_id"]}
                assert store.append_events(chosen) == len({*chosen["event_id"]} - known)
            case "publish":
                dataset = pl.concat([dataset, chosen]).unique("event_id", keep="first", maintain_order=True)
            case "ingest what was appended":
                appended = store.appended_events().filter(~pl.col("event_id").is_in(dataset["event_id"].to_list()))
                dataset = pl.concat([dataset, appended[: len(rows)]])
            case "restart":
                store.close()
        if step in ("publish", "ingest what was appended") and not dataset.is_empty():
            version = write_dataset(home, "small", events=dataset, **EMPTY, source="a test")
            expected = {*dataset["event_id"], *store.appended_events()["event_id"]}
            assert store.publish(version) == len(expected)
    return pl.concat([dataset, store.appended_events()])


def check(store: OnlineStore, events: pl.DataFrame, at: datetime) -> None:
    for entity in (USER, ITEM, EVERYTHING):
        ids = [""] if entity.key is None else EVENTS[entity.key].unique().sort().to_list()
        keys = pl.DataFrame({"event_time": [at] * len(ids), "source_row": [2**63 - 1] * len(ids)}).with_columns(
            pl.col("event_time").cast(pl.Datetime("us", "UTC"))
        )
        keys = keys if entity.key is None else keys.with_columns(pl.Series(entity.key, ids))
        wanted = features_of([view(entity)], events, keys)
        found = store.read(entity, ids, at)
        names = list(view(entity).features)
        assert found.select(names).rows() == wanted.select(names).rows()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(0, 86_400))
def test_sqlite(steps: list[tuple[str, list[int]]], seconds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "small.db", VIEWS)
        events = history(store, Path(folder), steps)
        for at in (START + timedelta(hours=7, seconds=seconds), LATER):
            check(store, events, at)
        store.close()


@pytest.mark.cluster
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(STEPS, st.integers(0, 86_400))
def test_redis(redis_url: str, steps: list[tuple[str, list[int]]], seconds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name
        store = RedisStore(redis_url, name, VIEWS)
        events = history(store, Path(folder), steps)
        for at in (START + timedelta(hours=7, seconds=seconds), LATER):
            check(store, events, at)
        store.close()
