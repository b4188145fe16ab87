"""The features that the benchmarks compute: of users and of items, over four windows."""

from datetime import timedelta

from data.aggregations import Aggregation, Count, LastN, Mean, Rate, RecencyWeighted, Sum, TimeSince, Window, days, hours
from data.schema import ITEM_ID, VALUE
from data.views import ITEM, USER, Entity, FeatureView

WINDOWS = {"1h": hours(1), "1d": days(1), "7d": days(7), "30d": days(30)}
RATE_WINDOW = "7d"
HALF_LIFE = timedelta(days=7)
LAST = 10


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
