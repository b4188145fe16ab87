"""Every feature, as a pure function over polars columns: no Ray, no I/O, no clock.

Batch and online run these same functions, so that a model is served what it was trained on. An event is a feature of
an example only if it comes earlier in the total order (event_time, source_row) *and* was known by then
(ingest_time <= the example's event_time): a late row is invisible until it arrives. No example sees itself.

Where there is nothing to look at yet, counts, means, shares and seconds-since-last are 0; the count tells the
difference between "nothing" and "zero".
"""

import ast
import bisect
import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from data.schema import (
    COUNTED,
    EVENT_TIME,
    HISTORY_ITEMS,
    HISTORY_TIMES,
    HISTORY_VALUES,
    INGEST_TIME,
    ITEM_EVENT_COUNT,
    ITEM_ID,
    ITEM_LAST_TIME,
    ITEM_MEAN_VALUE,
    ITEM_SECONDS_SINCE_LAST,
    ITEM_SHARE,
    ITEM_SUM_VALUE,
    SEQUENCE,
    SOURCE_ROW,
    USER_EVENT_COUNT,
    USER_ID,
    USER_MEAN_VALUE,
    USER_SECONDS_SINCE_LAST,
    VALUE,
    VISIBLE_FROM,
)

COUNTED_EVENTS = "counted_events"
"""Number of counted events, of all items, that an example can see: the denominator of `item_share`."""

NEVER = sys.maxsize
"""`visible_from` of an event that arrives after every example of its frame."""

TIME = pl.Datetime("us", "UTC")


def with_sequence(events: pl.DataFrame) -> pl.DataFrame:
    """Sort by the total order and add `sequence` (int64, 0-based rank in it) and `visible_from`."""
    ordered = events.sort(EVENT_TIME, SOURCE_ROW, maintain_order=True).with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE)
    )
    return with_visibility(ordered)


def with_visibility(events: pl.DataFrame) -> pl.DataFrame:
    """Add `visible_from`: the smallest `sequence` in this frame whose example may see the event.

    `events` must be sorted by `sequence`, which may have gaps (a bucket of a larger table). It is `sequence + 1`
    unless the event was ingested late; then it is the first example at or after its ingest_time.
    """
    known = events.get_column(EVENT_TIME).search_sorted(events.get_column(INGEST_TIME), side="left")
    sequences = events.get_column(SEQUENCE)
    known_from = sequences.extend_constant(NEVER, 1).gather(known).alias(VISIBLE_FROM)
    return events.with_columns(known_from).with_columns(pl.max_horizontal(VISIBLE_FROM, pl.col(SEQUENCE) + 1))


def user_windows(events: pl.DataFrame, history_length: int) -> pl.DataFrame:
    """Add to each event what its user had done before: the last `history_length` events, oldest first, and aggregates.

    Needs `sequence` and `visible_from`; returns the events sorted by `sequence` with `history_items` list[string],
    `history_values` list[float32], `history_times` list[timestamp], `user_event_count` int64, `user_mean_value`
    float32 (over all earlier events, not only the window) and `user_seconds_since_last` float64.
    """
    ordered = events.sort(USER_ID, SEQUENCE)
    next_sequence = pl.col(SEQUENCE).shift(-1).over(USER_ID)
    late_users = ordered.filter(pl.col(VISIBLE_FROM) > next_sequence).get_column(USER_ID).unique()
    is_late = pl.col(USER_ID).is_in(late_users.implode())
    punctual = _windows_in_order(ordered.filter(~is_late), history_length)
    if late_users.is_empty():
        return punctual.sort(SEQUENCE)
    late = [_windows_by_arrival(user, history_length) for user in ordered.filter(is_late).partition_by(USER_ID)]
    return pl.concat([punctual, *late]).sort(SEQUENCE)


def _windows_in_order(ordered: pl.DataFrame, history_length: int) -> pl.DataFrame:
    """Windows of users all of whose events were known before their next one. Sorted by (user, sequence)."""
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    count = row.over(USER_ID)
    rows = ordered.select(
        pl.int_ranges(row - pl.min_horizontal(count, history_length), row).alias("window"),
        count.alias(USER_EVENT_COUNT),
        pl.col(VALUE).cast(pl.Float64).cum_sum().shift(1).over(USER_ID).alias("total"),
        pl.col(EVENT_TIME).shift(1).over(USER_ID).alias("last_time"),
    )
    return _with_windows(ordered, rows)


def _windows_by_arrival(ordered: pl.DataFrame, history_length: int) -> pl.DataFrame:
    """Windows of one user, some of whose events were ingested after later ones: a row at a time, by arrival."""
    values = ordered.get_column(VALUE).cast(pl.Float64).to_list()
    times = ordered.get_column(EVENT_TIME).to_list()
    arrivals = sorted(zip(ordered.get_column(VISIBLE_FROM).to_list(), range(ordered.height), strict=True))
    visible: list[int] = []
    total, arrived = 0.0, 0
    rows: list[tuple[list[int], int, float, datetime | None]] = []
    for sequence in ordered.get_column(SEQUENCE).to_list():
        while arrived < len(arrivals) and arrivals[arrived][0] <= sequence:
            position = arrivals[arrived][1]
            bisect.insort(visible, position)
            total += values[position]
            arrived += 1
        rows.append((visible[-history_length:], arrived, total, times[visible[-1]] if visible else None))
    schema = {"window": pl.List(pl.Int64()), USER_EVENT_COUNT: pl.Int64(), "total": pl.Float64(), "last_time": TIME}
    return _with_windows(ordered, pl.DataFrame(rows, schema=schema, orient="row"))


def _with_windows(ordered: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Features from, per event: the positions of its window in `ordered`, count and total before it, and last time."""

    def history(column: str) -> pl.Series:
        return _gather_lists(ordered.get_column(column), rows.get_column("window"))

    return ordered.with_columns(
        history(ITEM_ID).alias(HISTORY_ITEMS),
        history(VALUE).alias(HISTORY_VALUES),
        history(EVENT_TIME).alias(HISTORY_TIMES),
        rows.get_column(USER_EVENT_COUNT),
        rows.select(_mean(pl.col("total"), pl.col(USER_EVENT_COUNT)).alias(USER_MEAN_VALUE)).to_series(),
        _seconds_between(rows.get_column("last_time"), pl.col(EVENT_TIME)).alias(USER_SECONDS_SINCE_LAST),
    )


def _gather_lists(values: pl.Series, positions: pl.Series) -> pl.Series:
    """A list of values for each list of positions; empty lists stay empty."""
    flat = positions.explode(empty_as_null=False, keep_nulls=False)
    offsets = positions.list.len().cast(pl.Int64).cum_sum().extend_constant(0, 1).shift(1, fill_value=0)
    lists = pa.LargeListArray.from_arrays(offsets.to_arrow(), values.gather(flat).to_arrow())
    return pl.Series(values.name, lists, dtype=pl.List(values.dtype))


USER_WINDOW_COLUMNS = (
    HISTORY_ITEMS,
    HISTORY_VALUES,
    HISTORY_TIMES,
    USER_EVENT_COUNT,
    USER_MEAN_VALUE,
    USER_SECONDS_SINCE_LAST,
)
"""What `user_windows` adds, in order."""


def user_features_at(events: pl.DataFrame, user_ids: list[str], moment: datetime, history_length: int) -> pl.DataFrame:
    """The features of `user_windows` as of `moment` (UTC), one row per user id in the given order, unknown ones too.

    This is the online read: `events` are the stored events of these users; a probe at `moment`, later in the order
    than any event of the same time, is appended to each and its row is taken.
    """
    users = list(dict.fromkeys(user_ids))
    probes = pl.DataFrame({USER_ID: users}, schema={USER_ID: pl.String}).with_columns(
        pl.lit("").alias(ITEM_ID),
        pl.lit(0.0, dtype=pl.Float32).alias(VALUE),
        pl.lit(moment).cast(TIME).alias(EVENT_TIME),
        pl.lit(moment).cast(TIME).alias(INGEST_TIME),
        pl.lit(NEVER, dtype=pl.Int64).alias(SOURCE_ROW),
    )
    table = pl.concat([events.select(probes.columns), probes])
    windows = user_windows(with_sequence(table), history_length).filter(pl.col(SOURCE_ROW) == NEVER)
    asked = pl.DataFrame({USER_ID: user_ids}, schema={USER_ID: pl.String})
    return asked.join(windows.select(USER_ID, *USER_WINDOW_COLUMNS), on=USER_ID, how="left", maintain_order="left")


def item_aggregates(events: pl.DataFrame) -> pl.DataFrame:
    """The timeline of every item: running count, sum of values and newest time, by the moment they become visible.

    Needs `sequence` and `visible_from`; a boolean column `counted`, if present, says which events count.
    Columns: item_id, visible_from, item_event_count int64, item_sum_value float64, item_last_time.
    """
    return (
        _only_counted(events)
        .sort(VISIBLE_FROM, SEQUENCE)
        .select(
            ITEM_ID,
            VISIBLE_FROM,
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(ITEM_ID).alias(ITEM_EVENT_COUNT),
            pl.col(VALUE).cast(pl.Float64).cum_sum().over(ITEM_ID).alias(ITEM_SUM_VALUE),
            pl.col(EVENT_TIME).cum_max().over(ITEM_ID).alias(ITEM_LAST_TIME),
        )
        .unique([ITEM_ID, VISIBLE_FROM], keep="last", maintain_order=True)
    )


def counted_timeline(events: pl.DataFrame) -> pl.DataFrame:
    """Running number of counted events of all items: visible_from, counted_events int64."""
    return (
        _only_counted(events)
        .sort(VISIBLE_FROM)
        .select(VISIBLE_FROM, pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(COUNTED_EVENTS))
        .unique(VISIBLE_FROM, keep="last", maintain_order=True)
    )


def item_state_at(timeline: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Add to each key (item_id, sequence) the item's running aggregates visible there; null where there are none."""
    return _as_of(keys, timeline, by=ITEM_ID)


def item_features_at(timeline: pl.DataFrame, counted: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Item features as of each key (item_id, sequence, event_time), in the order of the keys.

    `timeline` is `item_aggregates(events)`, `counted` is `counted_timeline(events)`.
    """
    return finish_item_features(_as_of(item_state_at(timeline, keys), counted))


def finish_item_features(state: pl.DataFrame) -> pl.DataFrame:
    """Turn running aggregates into features as of `event_time`; batch and online end here.

    Takes item_event_count, item_sum_value, item_last_time, counted_events (nulls mean nothing yet) and event_time;
    gives item_event_count int64, item_mean_value float32, item_share float32, item_seconds_since_last float64.
    """
    count = pl.col(ITEM_EVENT_COUNT).fill_null(0)
    share = count / pl.max_horizontal(pl.col(COUNTED_EVENTS).fill_null(0), 1)
    return state.with_columns(
        count.cast(pl.Int64).alias(ITEM_EVENT_COUNT),
        _mean(pl.col(ITEM_SUM_VALUE), count).alias(ITEM_MEAN_VALUE),
        share.cast(pl.Float32).alias(ITEM_SHARE),
        _seconds_between(pl.col(ITEM_LAST_TIME), pl.col(EVENT_TIME)).alias(ITEM_SECONDS_SINCE_LAST),
    ).drop(ITEM_SUM_VALUE, ITEM_LAST_TIME, COUNTED_EVENTS)


ITEM_FEATURE_COLUMNS = (ITEM_EVENT_COUNT, ITEM_MEAN_VALUE, ITEM_SHARE, ITEM_SECONDS_SINCE_LAST)
"""What `item_features_at` adds, in order."""


def _only_counted(events: pl.DataFrame) -> pl.DataFrame:
    return events.filter(COUNTED) if COUNTED in events.columns else events


def _as_of(keys: pl.DataFrame, timeline: pl.DataFrame, by: str | None = None) -> pl.DataFrame:
    """The newest row of `timeline` with visible_from <= the key's sequence, in the order of the keys."""
    joined = (
        keys.with_row_index("_key")
        .sort(SEQUENCE)
        .join_asof(
            timeline.rename({VISIBLE_FROM: "_from"}).sort("_from"),
            left_on=SEQUENCE,
            right_on="_from",
            by=by,
            strategy="backward",
            check_sortedness=False,
        )
    )
    return joined.sort("_key").drop("_key", "_from")


def _mean(total: pl.Expr, count: pl.Expr) -> pl.Expr:
    return pl.when(count > 0).then(total / count).otherwise(0.0).cast(pl.Float32)


def _seconds_between(earlier: pl.Expr | pl.Series, later: pl.Expr) -> pl.Expr:
    return ((later - earlier).dt.total_microseconds() / 1e6).fill_null(0.0)


def fingerprint(*functions: Callable[..., Any], **parameters: Any) -> str:
    """Hash of what the functions do (their code without comments) and of the parameters they are run with."""
    sources = [ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function)))) for function in functions]
    return hashlib.sha256(json.dumps([sources, parameters], sort_keys=True).encode()).hexdigest()[:16]


def feature_fingerprints(history_length: int) -> dict[str, str]:
    """Fingerprint of every feature view, stored with each table and each model that uses it."""
    visibility = (with_sequence, with_visibility)
    windows = (
        user_windows,
        _windows_in_order,
        _windows_by_arrival,
        _with_windows,
        _gather_lists,
        _mean,
        _seconds_between,
    )
    aggregates = (item_aggregates, counted_timeline, finish_item_features, _only_counted, _as_of)
    return {
        "user_windows": fingerprint(*visibility, *windows, _mean, _seconds_between, history_length=history_length),
        "item_aggregates": fingerprint(*visibility, *aggregates, _mean, _seconds_between),
    }
