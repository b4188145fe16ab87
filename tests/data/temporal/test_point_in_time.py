"""Features as of past moments against the definition, word by word; and what must not change them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data.aggregations import (
    ALL_TIME,
    Count,
    Distinct,
    LastN,
    Latest,
    Mean,
    Rate,
    RecencyWeighted,
    Sum,
    TimeSince,
    days,
    hours,
)
from data.temporal.point_in_time import features_at, features_of
from data.views import EVENT_TYPES, EVERYTHING, ITEM, USER, FeatureView
from tests.data.brute_force import expected_as_of, expected_features

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = 2**63 - 1
TIME = pl.Datetime("us", "UTC")
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US

WINDOWS = (hours(1), hours(3), days(1), days(30), ALL_TIME)

Event = tuple[str, str, float, int, int]
"""user, item, value, µs of the event, µs until it is ingested"""

moments = st.one_of(
    st.integers(-3, 6),
    st.integers(-5, 40).map(lambda minutes: minutes * MINUTE_US),
    st.tuples(st.integers(-3, 50), st.integers(-1, 1)).map(lambda at: at[0] * HOUR_US + at[1]),
    st.integers(-40 * 24, 40 * 24).map(lambda hour: hour * HOUR_US),
    st.sampled_from([-62_135_596_800_000_000, 253_402_300_799_999_999]),
)
delays = st.one_of(st.just(0), st.integers(-1, 3), st.integers(0, 90).map(lambda minutes: minutes * MINUTE_US))
values = st.one_of(
    st.integers(1, 5).map(float),
    st.sampled_from([0.0, -0.0, -1.5, 0.1, 1e9, -1e9, 3e38, float("nan"), float("inf"), float("-inf"), 2.0**-17]),
)
event_lists = st.lists(
    st.tuples(st.sampled_from(["anna", "Борис", "c/d e"]), st.sampled_from(["x", "y", "'q'"]), values, moments, delays),
    max_size=25,
)
key_lists = st.lists(
    st.tuples(
        st.sampled_from(["anna", "Борис", "c/d e", "nobody", ""]),
        moments,
        st.one_of(st.just(NEVER), st.integers(-1, 26)),
    ),
    max_size=12,
)


FORGOTTEN_TWICE: list[Event] = [
    ("anna", "x", 1.0, 0, HOUR_US),
    ("anna", "x", 1.0, 10 * HOUR_US, 0),
    ("anna", "x", 1.0, 20 * HOUR_US, 0),
]
"""A late event, and events of two epochs of a short half-life."""


def moment(micros: list[int]) -> pl.Series:
    """Moments from µs since the epoch."""
    return pl.Series(micros, dtype=pl.Int64).cast(TIME)


def events_of(raw: list[Event]) -> pl.DataFrame:
    """Events in the order of the source."""
    return pl.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(len(raw))],
            "user_id": [event[0] for event in raw],
            "item_id": [event[1] for event in raw],
            "event_type": ["click"] * len(raw),
            "value": [event[2] for event in raw],
            "event_time": moment([event[3] for event in raw]),
            "ingest_time": moment([min(event[3] + event[4], 253_402_300_799_999_999) for event in raw]),
            "decision_id": [None if event[3] % 2 else event[1] for event in raw],
            "source_row": range(len(raw)),
        },
        schema=EVENT_TYPES,
    )


def keys_of(raw: list[tuple[str, int, int]], entity: str = "user_id") -> pl.DataFrame:
    """Keys (entity id, µs, source row)."""
    return pl.DataFrame(
        {
            entity: [key[0] for key in raw],
            "event_time": moment([key[1] for key in raw]),
            "source_row": [key[2] for key in raw],
        },
        schema_overrides={entity: pl.String, "source_row": pl.Int64},
    )


def view_of(features: dict[str, Any], **options: Any) -> FeatureView:
    return FeatureView(
        **{"name": "test", "entity": USER, "description": "", "owner": "", "features": features} | options
    )


half = {"half": pl.when(pl.col("value") != 3).then(pl.col("value") / 2)}
"""A derived column with nulls."""

EVERY_FEATURE = view_of(
    {
        **{f"count {window}": Count(window) for window in WINDOWS},
        **{f"sum {window}": Sum("half", window) for window in WINDOWS},
        **{f"mean {window}": Mean("value", window, default=-7.0) for window in WINDOWS},
        **{f"mean of half {window}": Mean("half", window, default=-7.0) for window in WINDOWS},
        **{f"rate {window}": Rate(window, default=-2.0) for window in WINDOWS if window.length},
        **{f"items {window}": Distinct("item_id", window) for window in WINDOWS},
        **{f"values {window}": Distinct("half", window, default=-1) for window in WINDOWS},
        "last items": LastN("item_id", 3),
        "last values": LastN("half", 3),
        "last times": LastN("event_time", 2),
        "last one": LastN("source_row", 1),
        "since": TimeSince(default=-1.0),
        "latest": Latest("item_id"),
        "latest half": Latest("half", default=-9.0),
        "latest decision": Latest("decision_id", default="none"),
    },
    columns=half,
)


def check(view: FeatureView, events: pl.DataFrame, keys: pl.DataFrame) -> None:
    """Exactly the definition."""
    result = features_at(view, events, keys)
    assert_frame_equal(result.select(keys.columns), keys)
    assert result.select(*view.features).schema == view.schema()
    expected = pl.DataFrame(expected_features(view, events, keys), schema=_integer_times(view.schema()), strict=False)
    assert_frame_equal(result.select(*view.features), expected.cast(view.schema()), check_exact=True)


def _integer_times(schema: dict[str, pl.DataType]) -> dict[str, pl.DataType]:
    return {name: pl.List(pl.Int64) if kind == pl.List(TIME) else kind for name, kind in schema.items()}


@settings(max_examples=200, deadline=None)
@given(event_lists, key_lists)
def test_features_equal_the_definition(raw: list[Event], asked: list[tuple[str, int, int]]) -> None:
    check(EVERY_FEATURE, events_of(raw), keys_of(asked))


@settings(max_examples=150, deadline=None)
@given(event_lists)
def test_each_event_as_a_key_sees_what_came_before(raw: list[Event]) -> None:
    events = events_of(raw)
    check(EVERY_FEATURE, events, events.select("user_id", "event_time", "source_row"))


@settings(max_examples=100, deadline=None)
@given(event_lists, key_lists, st.sampled_from([timedelta(microseconds=3), timedelta(minutes=5), timedelta(days=1)]))
def test_time_to_live_and_filter(raw: list[Event], asked: list[tuple[str, int, int]], ttl: timedelta) -> None:
    view = view_of(EVERY_FEATURE.features, columns=half, ttl=ttl, where=pl.col("value") > 1)
    check(view, events_of(raw), keys_of(asked))


@settings(max_examples=60, deadline=None)
@given(event_lists, key_lists)
def test_features_of_everything_need_no_entity(raw: list[Event], asked: list[tuple[str, int, int]]) -> None:
    view = view_of(EVERY_FEATURE.features, columns=half, entity=EVERYTHING)
    check(view, events_of(raw), keys_of(asked).drop("user_id"))


@settings(max_examples=100, deadline=None)
@given(event_lists, key_lists, st.sampled_from([timedelta(minutes=1), timedelta(minutes=7), timedelta(days=10)]))
@example(FORGOTTEN_TWICE, [("anna", 2 * HOUR_US, NEVER)], timedelta(minutes=1))
def test_recency_weighted_sums_have_the_precision_of_float32(
    raw: list[Event], asked: list[tuple[str, int, int]], half_life: timedelta
) -> None:
    events, keys = events_of(raw), keys_of(asked)
    view = view_of(
        {"events": RecencyWeighted(half_life), "size": RecencyWeighted(half_life, "size", default=-1.0)},
        columns={"size": pl.col("value").abs()},
    )
    result = features_at(view, events, keys)
    for name, expected in expected_features(view, events, keys).items():
        assert result[name].to_list() == pytest.approx(expected, rel=3e-7, abs=1e-35)


@settings(max_examples=100, deadline=None)
@given(event_lists, key_lists, st.sampled_from([None, timedelta(microseconds=2), timedelta(hours=1)]))
def test_the_latest_value_is_that_of_the_newest_known_row(
    raw: list[Event], asked: list[tuple[str, int, int]], ttl: timedelta | None
) -> None:
    events, keys = events_of(raw), keys_of(asked)
    columns = ("event_id", "decision_id")
    result = features_at(view_of({f"newest {name}": Latest(name) for name in columns}, ttl=ttl), events, keys)
    assert result.select(keys.columns).equals(keys)
    for column in columns:
        assert result[f"newest {column}"].to_list() == expected_as_of(keys, events, "user_id", column, ttl)


@settings(max_examples=60, deadline=None)
@given(event_lists.filter(len), key_lists, st.randoms())
def test_no_order_of_rows_and_no_cut_into_buckets_matters(
    raw: list[Event], asked: list[tuple[str, int, int]], random: Any
) -> None:
    events, keys = events_of(raw), keys_of(asked)
    whole = features_at(EVERY_FEATURE, events, keys)
    shuffled = events[random.sample(range(events.height), events.height)]
    order = random.sample(range(keys.height), keys.height)
    assert_frame_equal(features_at(EVERY_FEATURE, shuffled, keys[order]), whole[order])
    sorted_ = events.sort("user_id", "event_time", "source_row")
    assert_frame_equal(features_at(EVERY_FEATURE, sorted_, keys), whole)
    for user in keys["user_id"].unique():
        mine = pl.col("user_id") == user
        assert_frame_equal(features_at(EVERY_FEATURE, events.filter(mine), keys.filter(mine)), whole.filter(mine))


def test_thousands_of_events_with_one_user_far_ahead() -> None:
    """A fifth of all events are one user's, a tenth are late by minutes to days; a sample of all is compared."""
    random = np.random.default_rng(5)
    count = 4_000
    users = np.where(random.random(count) < 0.2, 0, random.zipf(1.3, count) % 300)
    times = random.integers(0, 40 * 24 * 60, count) * MINUTE_US
    delays = np.where(random.random(count) < 0.1, random.integers(0, 5 * 24 * 60, count) * MINUTE_US, 0)
    rows = [
        (f"user {user}", f"item {item}", float(value), int(time), int(delay))
        for user, item, value, time, delay in zip(
            users, random.zipf(1.3, count) % 50, random.integers(1, 6, count), times, delays, strict=True
        )
    ]
    events = events_of(rows)
    keys = events.select("user_id", "event_time", "source_row")
    chosen = random.choice(count, 300, replace=False)
    whole = features_at(EVERY_FEATURE, events, keys)[chosen]
    assert_frame_equal(whole, features_at(EVERY_FEATURE, events, keys[chosen]))
    check(EVERY_FEATURE, events, keys[chosen])


def test_an_event_leaves_a_window_at_the_microsecond() -> None:
    window = hours(1)
    expiry = window.expires_us(90)
    assert expiry == MINUTE_US + HOUR_US
    events, keys = events_of([("a", "x", 1.0, 90, 0)]), keys_of([("a", expiry - 1, NEVER), ("a", expiry, NEVER)])
    result = features_at(view_of({"n": Count(window), "items": Distinct("item_id", window)}), events, keys)
    assert result["n"].to_list() == result["items"].to_list() == [1, 0]


def test_views_of_one_entity_are_computed_together() -> None:
    events = events_of([("a", "x", 1.0, 0, 0), ("b", "x", 5.0, 1, 0)])
    views = (
        view_of({"n": Count()}, entity=ITEM),
        view_of({"good": Count()}, entity=ITEM, where=pl.col("value") > 4, name="good"),
    )
    result = features_of(views, events, keys_of([("x", 2, NEVER), ("x", 1, NEVER), ("x", 1, 1)], "item_id"))
    assert result["n"].to_list() == [2, 2, 1]
    assert result["good"].to_list() == [1, 1, 0]
