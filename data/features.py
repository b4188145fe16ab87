"""Every feature of the project, declared once: batch, training and serving all compute it from this declaration.

To add one, declare it in a view of its own and name that view in `views`: the next `python -m jobs.build_features`
computes it for every example, and the online store for every entity. Models refuse to serve once a view they were
trained on has changed; a further view is nothing to them. Which events a feature may see is settled in
`data.temporal.visibility`: those earlier in (event_time, source_row) and known by then, never the example's own.
"""

import functools
import sys
from collections.abc import Sequence
from datetime import timedelta

import polars as pl

from data import aggregations
from data import views as declarations
from data.aggregations import Count, Distinct, LastN, Mean, Rate, RecencyWeighted, TimeSince, days, hours
from data.fingerprints import fingerprint, fingerprint_of_modules
from data.schema import (
    EVENT_TIME,
    EVENT_TYPE,
    HISTORY_ITEMS,
    HISTORY_TIMES,
    HISTORY_TYPES,
    HISTORY_VALUES,
    ITEM_EVENT_COUNT,
    ITEM_ID,
    ITEM_MEAN_VALUE,
    ITEM_SECONDS_SINCE_LAST,
    ITEM_SHARE,
    SEQUENCE,
    SOURCE_ROW,
    USER_EVENT_COUNT,
    USER_MEAN_VALUE,
    USER_SECONDS_SINCE_LAST,
    VALUE,
)
from data.temporal import cells, decay, distinct, point_in_time, timeline, visibility
from data.views import EVERYTHING, ITEM, USER, FeatureView

HISTORY_LENGTH = 50
COUNTED_EVENTS = "counted_events"
"""Number of events of all items: the denominator of `item_share`."""
ALL_MEAN_VALUE = "all_mean_value"
"""Mean value of the events of all items."""

NEVER = sys.maxsize
"""Source row of a key that is after all events of its moment: "as of then"."""

TIME = pl.Datetime("us", "UTC")

OWNER = "recommendations"


def views(history_length: int = HISTORY_LENGTH) -> tuple[FeatureView, ...]:
    """The declared views. `history_length`: events of a user's history at most."""
    return (user_activity(history_length), ITEM_POPULARITY, ALL_ACTIVITY)


def user_activity(history_length: int = HISTORY_LENGTH) -> FeatureView:
    """What a user did."""
    return FeatureView(
        name="user_activity",
        entity=USER,
        description="What a user did last, how much, how widely, and how well it was liked",
        owner=OWNER,
        features={
            HISTORY_ITEMS: LastN(ITEM_ID, history_length),
            HISTORY_VALUES: LastN(VALUE, history_length),
            HISTORY_TYPES: LastN(EVENT_TYPE, history_length),
            HISTORY_TIMES: LastN(EVENT_TIME, history_length),
            USER_EVENT_COUNT: Count(),
            USER_MEAN_VALUE: Mean(VALUE),
            USER_SECONDS_SINCE_LAST: TimeSince(),
            "user_events_1h": Count(hours(1)),
            "user_events_1d": Count(days(1)),
            "user_events_7d": Count(days(7)),
            "user_mean_value_30d": Mean(VALUE, days(30)),
            "user_distinct_items_30d": Distinct(ITEM_ID, days(30)),
            "user_recent_weight": RecencyWeighted(timedelta(days=7)),
        },
    )


ITEM_POPULARITY = FeatureView(
    name="item_popularity",
    entity=ITEM,
    description="How often an item was chosen, how lately, and how well it was liked",
    owner=OWNER,
    features={
        ITEM_EVENT_COUNT: Count(),
        ITEM_MEAN_VALUE: Mean(VALUE),
        ITEM_SECONDS_SINCE_LAST: TimeSince(),
        "item_events_1d": Count(days(1)),
        "item_events_7d": Count(days(7)),
        "item_events_30d": Count(days(30)),
        "item_rate_1h": Rate(hours(1)),
        "item_mean_value_30d": Mean(VALUE, days(30)),
        "item_recent_weight": RecencyWeighted(timedelta(days=7)),
    },
)

ALL_ACTIVITY = FeatureView(
    name="all_activity",
    entity=EVERYTHING,
    description="What everybody did: what other features are measured against",
    owner=OWNER,
    features={COUNTED_EVENTS: Count(), ALL_MEAN_VALUE: Mean(VALUE)},
)

USER_FEATURES = tuple(user_activity().features)
"""All features of users, in order."""

ITEM_FEATURES = (*ITEM_POPULARITY.features, ITEM_SHARE)
"""All features of items, in order."""

ITEM_FEATURE_COLUMNS = (ITEM_EVENT_COUNT, ITEM_MEAN_VALUE, ITEM_SHARE, ITEM_SECONDS_SINCE_LAST)
"""What ranking models read of an item, in order."""


def with_item_share(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `item_share` (float32): the item's part of all events, from `item_event_count` and `counted_events`."""
    share = pl.col(ITEM_EVENT_COUNT) / pl.max_horizontal(pl.col(COUNTED_EVENTS), 1)
    return rows.with_columns(share.cast(pl.Float32).alias(ITEM_SHARE))


def with_sequence(events: pl.DataFrame) -> pl.DataFrame:
    """Sort by the total order and add `sequence` (int64), the rank in it."""
    ordered = events.sort(EVENT_TIME, SOURCE_ROW, maintain_order=True)
    return ordered.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE))


def feature_fingerprints(history_length: int = HISTORY_LENGTH) -> dict[str, str]:
    """View → fingerprint of its definition and of the code that computes it: stored with each table and each model."""
    return fingerprints_of(views(history_length))


def fingerprints_of(declared: Sequence[FeatureView]) -> dict[str, str]:
    """The fingerprints of some views."""
    code = fingerprint(with_item_share, computation=computation())
    return {view.name: view.fingerprint(code) for view in declared}


@functools.cache
def computation() -> str:
    """Fingerprint of the code that computes features from events."""
    modules = (aggregations, cells, decay, declarations, distinct, point_in_time, timeline, visibility)
    return fingerprint_of_modules(*modules)
