"""The definition of every feature, word by word: a loop over all events for each key. Slow, obvious, exact."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from data.aggregations import Count, Distinct, LastN, Latest, Mean, Rate, RecencyWeighted, Sum, TimeSince, Window
from data.views import FeatureView

Row = dict[str, Any]
HOUR_US = 3_600_000_000


def micros(frame: pl.DataFrame) -> pl.DataFrame:
    """Times as integers."""
    times = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    return frame.with_columns(pl.col(times).dt.epoch("us"))


def seen_by(key: Row, events: list[Row], entity: str | None) -> list[Row]:
    """Earlier in (event_time, source_row), and known by then; oldest first."""
    seen = [
        event
        for event in events
        if (entity is None or event[entity] == key[entity])
        and (event["event_time"], event["source_row"]) < (key["event_time"], key["source_row"])
        and event["ingest_time"] <= key["event_time"]
    ]
    return sorted(seen, key=lambda event: (event["event_time"], event["source_row"]))


def expected_features(view: FeatureView, events: pl.DataFrame, keys: pl.DataFrame) -> dict[str, list[Any]]:
    """Feature → values in the order of the keys."""
    past = micros(view.prepared(events)).to_dicts()
    asked = [(key, seen_by(key, past, view.entity.key)) for key in micros(keys).to_dicts()]
    return {
        name: [_feature(view, aggregation, seen, key) for key, seen in asked]
        for name, aggregation in view.features.items()
    }


def expected_as_of(
    keys: pl.DataFrame, table: pl.DataFrame, entity: str | None, column: str, ttl: timedelta | None
) -> list[Any]:
    """The newest value that each key sees, if it is not too old."""
    values = []
    for key in micros(keys).to_dicts():
        seen = seen_by(key, micros(table).to_dicts(), entity)
        is_fresh = seen and (
            ttl is None or key["event_time"] - seen[-1]["event_time"] <= ttl / timedelta(microseconds=1)
        )
        values.append(seen[-1][column] if is_fresh else None)
    return values


def _feature(view: FeatureView, aggregation: Any, seen: list[Row], key: Row) -> Any:
    now = key["event_time"]
    ttl = None if view.ttl is None else view.ttl // timedelta(microseconds=1)
    if not seen or (ttl is not None and now - seen[-1]["event_time"] > ttl):
        return [] if isinstance(aggregation, LastN) else aggregation.default
    inside = [event for event in seen if in_window(getattr(aggregation, "window", Window(None)), event, now)]
    return _VALUES[type(aggregation)](aggregation, inside, seen, now)


def _mean(aggregation: Mean, inside: list[Row], _: list[Row], __: int) -> float:
    having = [event for event in inside if event[aggregation.of] is not None and not math.isnan(event[aggregation.of])]
    mean = fixed_sum(having, aggregation.of) * (1 / 2**16) / len(having) if having else aggregation.default
    return float32(mean)


def _forgotten(aggregation: RecencyWeighted, _: list[Row], seen: list[Row], now: int) -> float:
    half_life_us = aggregation.half_life / timedelta(microseconds=1)
    added = [1.0 if aggregation.of is None else fixed(event[aggregation.of]) / 2**16 for event in seen]
    ages = [(now - event["event_time"]) / half_life_us for event in seen]
    return math.fsum(weight * 2.0**-age for weight, age in zip(added, ages, strict=True))


_VALUES: dict[type, Callable[[Any, list[Row], list[Row], int], Any]] = {
    Count: lambda _, inside, __, ___: len(inside),
    Sum: lambda aggregation, inside, _, __: float32(fixed_sum(inside, aggregation.of) / 2**16),
    Mean: _mean,
    Rate: lambda aggregation, inside, _, __: float32(len(inside) * (HOUR_US / aggregation.window.length_us)),
    Distinct: lambda aggregation, inside, _, __: len({_same(event[aggregation.of]) for event in inside} - {None}),
    LastN: lambda aggregation, _, seen, __: [event[aggregation.of] for event in seen[-aggregation.length :]],
    TimeSince: lambda _, __, seen, now: (now - seen[-1]["event_time"]) / 1e6,
    Latest: lambda aggregation, _, seen, __: seen[-1][aggregation.of],
    RecencyWeighted: _forgotten,
}
"""Aggregation → (it, events in its window, events seen, now) → its value."""


def in_window(window: Window, event: Row, now: int) -> bool:
    """Whether an event still counts: the beginning of a window moves on in hops."""
    if window.length is None:
        return True
    hop = window.hop_us
    return now < event["event_time"] // hop * hop + hop + window.length_us


def fixed(value: float | None) -> int:
    """A value in steps of 2**-16, cut to ±1e9."""
    if value is None or math.isnan(value):
        return 0
    return int(np.rint(min(max(value, -1e9), 1e9) * 2**16))


def fixed_sum(events: list[Row], column: str) -> int:
    """Sum of a column in fixed point."""
    return sum(fixed(event[column]) for event in events)


def float32(value: float) -> float:
    """Rounded as it is stored."""
    return float(np.float32(value))


def _same(value: Any) -> Any:
    return "not a number" if isinstance(value, float) and math.isnan(value) else value
