"""Every feature, as a pure function over polars columns: no Ray, no I/O, no clock.

Batch and online run these same functions, so that a model is served what it was trained on. An event is a feature of
an example only if it comes earlier in the total order (event_time, source_row) *and* was known by then
(ingest_time <= the example's event_time): a late row is invisible until it arrives. No example sees itself.

Where there is nothing to look at yet, counts, means, shares and seconds-since-last are 0; the count tells the
difference between "nothing" and "zero".
"""

import bisect
import sys
from datetime import datetime
from itertools import chain

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data.fingerprints import fingerprint
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
Positions = npt.NDArray[np.int64]


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
    known = pl.col(EVENT_TIME).search_sorted(pl.col(INGEST_TIME), side="left")
    known_from = pl.col(SEQUENCE).extend_constant(NEVER, 1).gather(known)
    return events.with_columns(pl.max_horizontal(pl.col(SEQUENCE) + 1, known_from).alias(VISIBLE_FROM))


def user_windows(events: pl.DataFrame, history_length: int, only: pl.Expr | None = None) -> pl.DataFrame:
    """Add to each event what its user had done before: the last `history_length` events, oldest first, and aggregates.

    Needs `sequence` and `visible_from`; returns the events, or `only` those, sorted by `sequence` with `history_items`
    list[string], `history_values` list[float32], `history_times` list[timestamp], `user_event_count` int64,
    `user_mean_value` float32 (over all earlier events, not only the window) and `user_seconds_since_last` float64.
    """
    missed = (pl.col(VISIBLE_FROM) > pl.col(SEQUENCE).shift(-1)).any().over(USER_ID)
    ordered = events.sort(USER_ID, SEQUENCE).with_columns(missed.alias(_LATE))
    if not ordered.get_column(_LATE).any():
        return _windows_in_order(ordered.drop(_LATE), history_length, only).sort(SEQUENCE)
    punctual = _windows_in_order(ordered.filter(~pl.col(_LATE)).drop(_LATE), history_length, only)
    late = ordered.filter(_LATE).drop(_LATE).partition_by(USER_ID)
    return pl.concat([punctual, *(_windows_by_arrival(user, history_length, only) for user in late)]).sort(SEQUENCE)


_LATE, _ROW, _TOTAL, _LAST_TIME = "_late", "_row", "_total", "_last_time"


def _windows_in_order(ordered: pl.DataFrame, history_length: int, only: pl.Expr | None) -> pl.DataFrame:
    """Windows of users all of whose events were known before their next one. Takes rows sorted by (user, sequence)."""
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    rows = ordered.with_columns(
        row.alias(_ROW),
        row.over(USER_ID).alias(USER_EVENT_COUNT),
        pl.col(VALUE).cast(pl.Float64).cum_sum().shift(1).over(USER_ID).alias(_TOTAL),
        pl.col(EVENT_TIME).shift(1).over(USER_ID).alias(_LAST_TIME),
    )
    rows = rows if only is None else rows.filter(only)
    lengths = np.minimum(rows.get_column(USER_EVENT_COUNT).to_numpy(), history_length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = rows.get_column(_ROW).to_numpy() - lengths
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return _with_windows(ordered, rows, positions, offsets)


def _windows_by_arrival(ordered: pl.DataFrame, history_length: int, only: pl.Expr | None) -> pl.DataFrame:
    """Windows of one user, some of whose events were ingested after later ones: a row at a time, by arrival."""
    values = ordered.get_column(VALUE).cast(pl.Float64).to_list()
    times = ordered.get_column(EVENT_TIME).to_list()
    arrivals = sorted(zip(ordered.get_column(VISIBLE_FROM).to_list(), range(ordered.height), strict=True))
    visible: list[int] = []
    total, arrived = 0.0, 0
    windows: list[list[int]] = []
    state: list[tuple[int, int, float, datetime | None]] = []
    for row, sequence in enumerate(ordered.get_column(SEQUENCE).to_list()):
        while arrived < len(arrivals) and arrivals[arrived][0] <= sequence:
            position = arrivals[arrived][1]
            bisect.insort(visible, position)
            total += values[position]
            arrived += 1
        windows.append(visible[-history_length:])
        state.append((row, arrived, total, times[visible[-1]] if visible else None))
    schema = {_ROW: pl.Int64(), USER_EVENT_COUNT: pl.Int64(), _TOTAL: pl.Float64(), _LAST_TIME: TIME}
    rows = ordered.hstack(pl.DataFrame(state, schema=schema, orient="row"))
    rows = rows if only is None else rows.filter(only)
    chosen = [windows[row] for row in rows.get_column(_ROW)]
    offsets = np.concatenate([[0], np.cumsum([len(window) for window in chosen], dtype=np.int64)])
    return _with_windows(ordered, rows, np.array(list(chain(*chosen)), dtype=np.int64), offsets)


def _with_windows(ordered: pl.DataFrame, rows: pl.DataFrame, positions: Positions, offsets: Positions) -> pl.DataFrame:
    """`rows` with their features. The window of row i: `positions[offsets[i] : offsets[i + 1]]`, rows of `ordered`."""
    members = ordered.select(pl.col(ITEM_ID, VALUE, EVENT_TIME).gather(pl.Series(positions, dtype=pl.Int64)))
    histories = [
        pl.Series(name, pa.LargeListArray.from_arrays(offsets, column.to_arrow()), dtype=pl.List(column.dtype))
        for name, column in zip((HISTORY_ITEMS, HISTORY_VALUES, HISTORY_TIMES), members, strict=True)
    ]
    return rows.select(
        *ordered.columns,
        *histories,
        USER_EVENT_COUNT,
        _mean(pl.col(_TOTAL), pl.col(USER_EVENT_COUNT)).alias(USER_MEAN_VALUE),
        _seconds_between(pl.col(_LAST_TIME), pl.col(EVENT_TIME)).alias(USER_SECONDS_SINCE_LAST),
    )


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
    windows = user_windows(with_sequence(table), history_length, only=pl.col(SOURCE_ROW) == NEVER)
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


def _seconds_between(earlier: pl.Expr, later: pl.Expr) -> pl.Expr:
    return ((later - earlier).dt.total_microseconds() / 1e6).fill_null(0.0)


def feature_fingerprints(history_length: int) -> dict[str, str]:
    """Fingerprint of every feature view, stored with each table and each model that uses it."""
    aggregates = (item_aggregates, counted_timeline, item_features_at)
    return {
        "user_windows": fingerprint(with_sequence, user_windows, history_length=history_length),
        "item_aggregates": fingerprint(with_sequence, *aggregates),
    }
