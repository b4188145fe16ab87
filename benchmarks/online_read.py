"""Reading 50 online features of 1, 10 and 100 users: ours, the raw call of the same store, and Feast on the same store.

    python -m benchmarks.online_read

The three take turns. The raw call fetches the same packed values and leaves them packed: the limit. All figures are
printed last, as JSON.
"""

import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import redis

from benchmarks import stream_to_online
from benchmarks.events import EventStream
from benchmarks.feast_environment import feast_reader
from benchmarks.redis_server import redis_server
from data.aggregations import (
    ALL_TIME,
    Aggregation,
    Count,
    Distinct,
    Mean,
    Rate,
    RecencyWeighted,
    Sum,
    TimeSince,
    days,
    hours,
)
from data.dataset import Dataset, write_dataset
from data.online.stores.redis import RedisStore
from data.online.stores.sqlite import SqliteStore
from data.quality.validation import polars_schema
from data.schema import EVENT_TIME, EVENTS, ITEM_ID, ITEMS, QUARANTINE, SOURCE_ROW, USER_ID, USERS, VALUE
from data.views import USER, FeatureView

EVENTS_IN_STORE = 200_000
ENTITIES = (1, 10, 100)
ROUNDS = 30
READS = {1: 100, 10: 60, 100: 30}
"""Of ours and of the raw call, in a round."""
READS_OF_FEAST = {1: 10, 10: 10, 100: 5}

WINDOWS = {
    "1h": hours(1),
    "6h": hours(6),
    "1d": days(1),
    "7d": days(7),
    "30d": days(30),
    "90d": days(90),
    "364d": days(364),
    "all": ALL_TIME,
}

Read = Callable[[list[str]], object]


def views() -> tuple[FeatureView, ...]:
    """Two views of users with 50 numbers between them."""
    features: dict[str, Aggregation] = {}
    for name, window in WINDOWS.items():
        features |= {
            f"count_{name}": Count(window),
            f"sum_{name}": Sum(VALUE, window),
            f"mean_{name}": Mean(VALUE, window),
            f"items_{name}": Distinct(ITEM_ID, window),
        }
        if window is not ALL_TIME:
            features[f"rate_{name}"] = Rate(window)
    features |= {
        "seconds_since": TimeSince(),
        "recent": RecencyWeighted(timedelta(days=7)),
        "recent_value": RecencyWeighted(timedelta(days=1), VALUE),
    }
    high: dict[str, Aggregation] = {f"high_{name}": Count(window) for name, window in WINDOWS.items()}
    return (
        _view("all_events", features),
        _view("high_values", high, where=pl.col(VALUE) >= 4),
    )


def _view(name: str, features: dict[str, Aggregation], where: pl.Expr | None = None) -> FeatureView:
    described = "What the benchmark reads."
    return FeatureView(
        name=name, entity=USER, features=features, where=where, description=described, owner="benchmarks"
    )


def measure() -> dict[str, float]:
    """All figures about the online store, those of `benchmarks.stream_to_online` included."""
    return reads() | stream_to_online.measure()


def reads() -> dict[str, float]:
    """Figures of a report: `p50_ms/online/redis/ours/100`, `p99_ms/online/sqlite/feast/1`, …"""
    with tempfile.TemporaryDirectory(prefix="towerline-bench-") as folder:
        home = Path(folder)
        dataset = _dataset(home)
        figures = _of_sqlite(home, dataset) | _of_redis(home, dataset)
    plain = {name.replace("/online/sqlite/", "/online/"): value for name, value in figures.items() if "_ms/" in name}
    return figures | plain


def _of_sqlite(home: Path, dataset: Dataset) -> dict[str, float]:
    store = SqliteStore(home / "online.db", views())
    store.publish(dataset)
    connection = sqlite3.connect(home / "online.db")
    (number,) = connection.execute("SELECT number FROM versions").fetchone()

    def raw(ids: list[str]) -> object:
        places = ", ".join("?" * len(ids))
        return connection.execute(f"SELECT id, value FROM user_{number} WHERE id IN ({places})", ids).fetchall()

    figures = _compared("sqlite", store, raw, dataset, home / "feast-sqlite")
    connection.close()
    store.close()
    return figures


def _of_redis(home: Path, dataset: Dataset) -> dict[str, float]:
    with redis_server(home) as server:
        store = RedisStore(server.address, "bench", views())
        store.publish(dataset)
        client = redis.Redis.from_url(server.address)
        (number,) = (int(each) for each in client.hkeys("towerline:bench:versions"))
        prefix = f"towerline:bench:{number}:user:"

        def raw(ids: list[str]) -> object:
            return client.mget([prefix + each for each in ids])

        figures = _compared("redis", store, raw, dataset, home / "feast-redis", redis_address=server.address)
        client.close()
        store.close()
    return figures


def _compared(
    name: str, store: SqliteStore | RedisStore, raw: Read, dataset: Dataset, folder: Path, *, redis_address: str = ""
) -> dict[str, float]:
    """p50 and p99 of the three, taking turns, and what follows from the p50."""
    at = dataset.manifest.last_event_time + timedelta(minutes=1)
    ids = dataset.events().get_column(USER_ID).unique().sort().to_list()
    features = list(store.scalar_features(USER))
    rows = pl.DataFrame(store.read_numbers(USER, ids, at), schema=features).with_columns(
        pl.Series(USER_ID, ids), pl.lit(at).alias("event_timestamp")
    )
    seconds: dict[tuple[str, int], list[float]] = {(side, n): [] for side in ("ours", "raw", "feast") for n in ENTITIES}
    with feast_reader(folder, rows, USER_ID, redis_address) as feast:
        for _ in range(ROUNDS):
            for count in ENTITIES:
                seconds["ours", count] += _timed(lambda some: store.read_numbers(USER, some, at), ids, count)
                seconds["raw", count] += _timed(raw, ids, count)
                seconds["feast", count] += feast.read(count, READS_OF_FEAST[count])
    return _figures(name, seconds)


def _timed(read: Read, ids: list[str], count: int) -> list[float]:
    seconds = []
    for _ in range(READS[count]):
        some = random.choices(ids, k=count)
        begin = time.perf_counter()
        read(some)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _figures(name: str, seconds: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    figures = {
        f"p{percent}_ms/online/{name}/{side}/{count}": float(np.percentile(found, percent)) * 1e3
        for (side, count), found in seconds.items()
        for percent in (50, 99)
    }
    for count in ENTITIES:
        ours, raw, feast = (figures[f"p50_ms/online/{name}/{side}/{count}"] for side in ("ours", "raw", "feast"))
        figures |= {
            f"ratio_to_raw/online/{name}/{count}": ours / raw,
            f"us_per_entity_over_raw/online/{name}/{count}": (ours - raw) * 1e3 / count,
            f"times_faster_than_feast/online/{name}/{count}": feast / ours,
        }
    return figures


def _dataset(home: Path) -> Dataset:
    events = pl.concat(list(EventStream(EVENTS_IN_STORE).frames())).with_row_index(SOURCE_ROW)
    known = events.with_columns(pl.col(SOURCE_ROW).cast(pl.Int64), ingest_time=pl.col(EVENT_TIME))
    absent = [
        pl.lit(None, dtype=kind).alias(name)
        for name, kind in polars_schema(EVENTS).items()
        if name not in known.columns
    ]
    table = known.with_columns(absent).select(EVENTS.names)
    items, users, quarantine = (pl.DataFrame(schema=polars_schema(each)) for each in (ITEMS, USERS, QUARANTINE))
    return write_dataset(
        home, "bench", events=table, items=items, users=users, quarantine=quarantine, source="the benchmark's generator"
    )


if __name__ == "__main__":
    print(json.dumps(measure()))
