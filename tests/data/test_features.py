"""Features against a slow, obvious reference; the property that no example sees itself or anything later."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data import features
from data.pipeline import EXAMPLE_COLUMNS, examples_of

START = datetime(2024, 1, 1, tzinfo=UTC)
NO_ITEMS = pl.DataFrame(schema={"item_id": pl.String, "title": pl.String, "attributes": pl.List(pl.String)})
NO_USERS = pl.DataFrame(schema={"user_id": pl.String, "attributes": pl.List(pl.String)})
Row = tuple[str, str, int, int, int]

rows = st.lists(
    st.tuples(
        st.sampled_from(["anna", "Борис", "c/d e"]),
        st.sampled_from(["x", "y", "zed", "'q'"]),
        st.integers(1, 5),
        st.integers(0, 6),
        st.sampled_from([0, 0, 0, 2, 5]),
    ),
    max_size=30,
)
"""user, item, value, second (few, so that ties abound), seconds until the event is ingested."""


def events_of(raw: list[Row]) -> pl.DataFrame:
    """Events in the order given, which is the order of the source."""
    times = [START + timedelta(seconds=row[3]) for row in raw]
    known = [START + timedelta(seconds=row[3] + row[4]) for row in raw]
    return pl.DataFrame(
        {
            "user_id": [row[0] for row in raw],
            "item_id": [row[1] for row in raw],
            "value": [float(row[2]) for row in raw],
            "event_time": times,
            "ingest_time": known,
            "source_row": list(range(len(raw))),
        },
        schema={
            "user_id": pl.String,
            "item_id": pl.String,
            "value": pl.Float32,
            "event_time": features.TIME,
            "ingest_time": features.TIME,
            "source_row": pl.Int64,
        },
    )


def seen_by(example: dict[str, Any], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rule of ARCHITECTURE §4, word by word: earlier in (event_time, source_row), and known by then."""
    return [
        other
        for other in others
        if (other["event_time"], other["source_row"]) < (example["event_time"], example["source_row"])
        and other["ingest_time"] <= example["event_time"]
    ]


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(1, 4))
def test_user_windows_equal_the_rule_word_by_word(raw: list[Row], history_length: int) -> None:
    ordered = features.with_sequence(events_of(raw))
    result = features.user_windows(ordered, history_length)
    assert result["sequence"].to_list() == list(range(len(raw)))
    table = ordered.to_dicts()
    for example in result.to_dicts():
        past = [other for other in seen_by(example, table) if other["user_id"] == example["user_id"]]
        window = past[-history_length:]
        assert example["history_items"] == [other["item_id"] for other in window]
        assert example["history_values"] == [other["value"] for other in window]
        assert example["history_times"] == [other["event_time"] for other in window]
        assert example["user_event_count"] == len(past)
        mean = sum(other["value"] for other in past) / len(past) if past else 0
        assert example["user_mean_value"] == pytest.approx(mean)
        since = (example["event_time"] - past[-1]["event_time"]).total_seconds() if past else 0
        assert example["user_seconds_since_last"] == since


@settings(max_examples=150, deadline=None)
@given(rows, st.data())
def test_item_features_equal_the_rule_word_by_word(raw: list[Row], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(raw), max_size=len(raw)))
    ordered = features.with_sequence(events_of(raw)).with_columns(pl.Series("counted", flags, dtype=pl.Boolean))
    timeline, counted = features.item_aggregates(ordered), features.counted_timeline(ordered)
    keys = ordered.select("sequence", "event_time", "source_row").join(
        pl.DataFrame({"item_id": ["x", "y", "never seen"]}), how="cross"
    )
    result = features.item_features_at(timeline, counted, keys)
    assert result.select(keys.columns).equals(keys)
    table = ordered.to_dicts()
    for example in result.to_dicts():
        past = [other for other in seen_by(example, table) if other["counted"]]
        of_item = [other for other in past if other["item_id"] == example["item_id"]]
        assert example["item_event_count"] == len(of_item)
        mean = sum(other["value"] for other in of_item) / len(of_item) if of_item else 0
        assert example["item_mean_value"] == pytest.approx(mean)
        assert example["item_share"] == pytest.approx(len(of_item) / max(len(past), 1))
        newest = max((other["event_time"] for other in of_item), default=example["event_time"])
        assert example["item_seconds_since_last"] == (example["event_time"] - newest).total_seconds()


@settings(max_examples=100, deadline=None)
@given(rows.filter(len), st.data())
def test_no_example_sees_itself_or_anything_later(raw: list[Row], data: st.DataObject) -> None:
    """Change an event and everything after it, even what it holds itself: the features before and at it stay."""
    ordered = features.with_sequence(events_of(raw))
    cut = data.draw(st.integers(0, len(raw) - 1))
    is_later = pl.col("sequence") >= cut
    other = ordered.with_columns(
        pl.when(is_later).then(pl.lit("w")).otherwise("item_id").alias("item_id"),
        pl.when(is_later).then(pl.lit(9.0)).otherwise("value").cast(pl.Float32).alias("value"),
    )
    columns = ["sequence", *features.USER_WINDOW_COLUMNS]
    before, after = (features.user_windows(table, 3).select(columns).head(cut + 1) for table in (ordered, other))
    assert_frame_equal(before, after)

    keys = ordered.head(cut + 1).select("sequence", "event_time", "item_id")
    before, after = (
        features.item_features_at(features.item_aggregates(table), features.counted_timeline(table), keys)
        for table in (ordered, other)
    )
    assert_frame_equal(before, after)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_order_of_rows_in_memory_does_not_matter(raw: list[Row]) -> None:
    events = events_of(raw)
    straight = examples_of(events, NO_ITEMS, NO_USERS, 3)
    assert straight.columns == EXAMPLE_COLUMNS
    assert_frame_equal(straight, examples_of(events.reverse(), NO_ITEMS, NO_USERS, 3))


@settings(max_examples=100, deadline=None)
@given(rows.filter(len), st.integers(0, 8))
def test_online_equals_offline_at_any_moment(raw: list[Row], second: int) -> None:
    """What is read for a user at a moment is what a training example at that moment would have held."""
    moment = START + timedelta(seconds=second)
    events = events_of(raw)
    online = features.user_features_at(events, ["anna", "nobody"], moment, 3)
    example = events_of([*raw, ("anna", "x", 1, second, 0)])
    offline = features.user_windows(features.with_sequence(example), 3).filter(pl.col("source_row") == len(raw))
    assert_frame_equal(online.head(1), offline.select(online.columns))
    assert online.row(1) == ("nobody", [], [], [], 0, 0.0, 0.0)


def test_user_features_keep_the_order_asked_for() -> None:
    events = events_of([("a", "x", 1, 0, 0), ("b", "y", 5, 1, 0)])
    read = features.user_features_at(events, ["b", "c", "a", "b"], START + timedelta(days=2), 10)
    assert read["user_id"].to_list() == ["b", "c", "a", "b"]
    assert read["history_items"].to_list() == [["y"], [], ["x"], ["y"]]
    assert read["user_seconds_since_last"].to_list() == [172_799.0, 0.0, 172_800.0, 172_799.0]


def test_a_late_event_is_invisible_until_it_arrives_and_hides_nothing() -> None:
    events = events_of([("a", "known", 1, 0, 0), ("a", "late", 5, 1, 3), ("a", "x", 1, 2, 0), ("a", "x", 1, 4, 0)])
    windows = features.user_windows(features.with_sequence(events), 10)
    assert windows["history_items"].to_list() == [[], ["known"], ["known"], ["known", "late", "x"]]


def test_fingerprints_follow_definition_and_parameters() -> None:
    ten, twenty = features.feature_fingerprints(10), features.feature_fingerprints(20)
    assert ten == features.feature_fingerprints(10)
    assert ten["user_windows"] != twenty["user_windows"]
    assert ten["item_aggregates"] == twenty["item_aggregates"]
