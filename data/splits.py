"""Time-ordered leave-one-out: which of a user's events train, which select models and which test them."""

import hashlib

import polars as pl

from cluster.errors import TowerlineError
from data.schema import EVENT_TIME, SOURCE_ROW, SPLIT, USER_ID

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
FOLD_IN = "fold-in"
"""What is told of a held-out user: it neither trains nor is asked for."""
UNUSED = "unused"

TOTAL_ORDER = [EVENT_TIME, SOURCE_ROW]
"""The strict total order of events: time, then the row of the source. Many sources have ties in time."""

EVENTS_TO_HOLD_OUT = 3
"""A user needs this many events to give one to the test and one to the validation split and keep one."""

LEAVE_ONE_OUT_PROTOCOL = (
    "time-ordered leave-one-out: per user the last event is the test, the one before it selects models, all earlier "
    "ones train; order is (event_time, source_row); users with fewer than 3 events only train"
)


def protocol_hash(protocol: str = LEAVE_ONE_OUT_PROTOCOL) -> str:
    """Short hash of a protocol's text, the tie rule included, to stand beside every figure."""
    return hashlib.sha256(protocol.encode()).hexdigest()[:12]


def assign_splits(events: pl.DataFrame, cut_off: int = 0) -> pl.DataFrame:
    """Add `split` and sort by the total order. Works on any set of whole users: one bucket or the full table.

    `cut_off`: so many of every user's last events are left out (`UNUSED`), as if they had not happened yet.
    """
    from_last = pl.int_range(pl.len()).reverse().over(USER_ID) - cut_off
    splits = (
        pl.when(from_last < 0)
        .then(pl.lit(UNUSED))
        .when(pl.len().over(USER_ID) < EVENTS_TO_HOLD_OUT + cut_off)
        .then(pl.lit(TRAIN))
        .when(from_last == 0)
        .then(pl.lit(TEST))
        .when(from_last == 1)
        .then(pl.lit(VALIDATION))
        .otherwise(pl.lit(TRAIN))
    )
    ordered = events if in_total_order(events) else events.sort(TOTAL_ORDER)
    return ordered.with_columns(splits.alias(SPLIT))


def in_total_order(events: pl.DataFrame) -> bool:
    """Whether they need no sorting, which moves every column of every row."""
    time, row = events[EVENT_TIME], events[SOURCE_ROW]
    after = (time > time.shift()) | ((time == time.shift()) & (row >= row.shift()))
    return bool(after[1:].all())


def count_held_out_users(events: pl.DataFrame) -> int:
    """Number of users with enough events to be held out."""
    counts = events.group_by(USER_ID).len()
    return counts.filter(pl.col("len") >= EVENTS_TO_HOLD_OUT).height


def require_users(held_out_users: int, minimum_users: int, users: int) -> None:
    """Raise TowerlineError when a leave-one-out split would have fewer than `minimum_users` users to test on."""
    if held_out_users < minimum_users:
        raise TowerlineError(
            f"the leave-one-out split needs at least {minimum_users} users with {EVENTS_TO_HOLD_OUT} or more events "
            f"each, this data set has {held_out_users} (of {users} users); ingest more events"
        )
