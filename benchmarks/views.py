"""The features that the benchmarks compute: of users and of items, over four windows."""

from datetime import timedelta

import polars as pl

from data.aggregations import (
    Aggregation,
    Count,
    LastN,
    Latest,
    Mean,
    Rate,
    RecencyWeighted,
    Sum,
    TimeSince,
    Window,
    days,
    hours,
)
from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, INGEST_TIME, ITEM_ID, VALUE
from data.views import ITEM, USER, Entity, FeatureView

WINDOWS = {"1h": hours(1), "1d": days(1), "7d": days(7), "30d": days(30)}
RATE_WINDOW = "7d"
HALF_LIFE = timedelta(days=7)
LAST = 10
NEWEST_TTL = timedelta(days=30)
LIKED = 4


def benchmark_views() -> tuple[FeatureView, ...]:
    """One view of users and one of items, 16 features each."""
    return (_view(USER, LastN(ITEM_ID, LAST)), _view(ITEM, LastN(VALUE, LAST)))


def _view(entity: Entity, last: LastN) -> FeatureView:
    features: dict[str, Aggregation] = {}
    for name, window in WINDOWS.items():
        features |= _of_window(f"{entity.name}_{{}}_{name}", window)
    features |= {
        f"{entity.name}_rate": Rate(WINDOWS[RATE_WINDOW]),
        f"{entity.name}_seconds_since": TimeSince(),
        f"{entity.name}_recency": RecencyWeighted(HALF_LIFE),
        f"{entity.name}_last": last,
    }
    return FeatureView(
        name=f"{entity.name}_bench",
        entity=entity,
        features=features,
        description="What the benchmark computes.",
        owner="benchmarks",
    )


def _of_window(name: str, window: Window) -> dict[str, Aggregation]:
    return {
        name.format("count"): Count(window),
        name.format("sum"): Sum(VALUE, window),
        name.format("mean"): Mean(VALUE, window),
    }


def newest_view() -> FeatureView:
    """Ten columns of a user's newest known event, six as they are and four computed from it; none after 30 days."""
    plain = (EVENT_ID, ITEM_ID, EVENT_TYPE, VALUE, EVENT_TIME, INGEST_TIME)
    computed = {
        "doubled": pl.col(VALUE) * 2,
        "liked": pl.col(VALUE) >= LIKED,
        "hour": pl.col(EVENT_TIME).dt.hour(),
        "weekday": pl.col(EVENT_TIME).dt.weekday(),
    }
    return FeatureView(
        name="newest_bench",
        entity=USER,
        features={f"newest_{name}": Latest(name) for name in (*plain, *computed)},
        columns=computed,
        ttl=NEWEST_TTL,
        description="What the benchmark joins.",
        owner="benchmarks",
    )
