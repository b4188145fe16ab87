"""One example per event: the event, and what was knowable about its user and its item just before it.

Pure functions over polars frames: no Ray, no I/O. All that was known just before an event counts into its features,
whatever split other events have: a split says which events are asked for, not what was knowable.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import polars as pl

from data.features import COUNTED_EVENTS, HISTORY_LENGTH, views, with_item_share
from data.schema import (
    ATTRIBUTES,
    EVENT_TIME,
    INGEST_TIME,
    ITEM_ATTRIBUTES,
    ITEM_EVENT_COUNT,
    ITEM_ID,
    ITEM_SHARE,
    SEQUENCE,
    SOURCE_ROW,
    SPLIT,
    USER_ATTRIBUTES,
    USER_ID,
    VALUE,
)
from data.splits import TOTAL_ORDER, assign_splits
from data.temporal.point_in_time import features_of
from data.views import ENTITIES, EVENT_TYPES, USER, Entity, FeatureView, views_of

EVENT_COLUMNS = [SEQUENCE, EVENT_TIME, SOURCE_ROW, USER_ID, ITEM_ID, VALUE, SPLIT]


def features_in(declared: Iterable[FeatureView]) -> list[str]:
    """Names of the features, in order."""
    return [feature for view in declared for feature in view.features]


def example_columns(declared: Sequence[FeatureView]) -> list[str]:
    """Columns of an example, in order."""
    of_users = features_in(views_of(USER, tuple(declared)))
    others = features_in(view for view in declared if view.entity != USER)
    shares = [ITEM_SHARE] if _has_share(others) else []
    return [*EVENT_COLUMNS, *of_users, USER_ATTRIBUTES, *others, *shares, ITEM_ATTRIBUTES]


def columns_needed(declared: Sequence[FeatureView], *others: str) -> list[str]:
    """Columns of the stored events that features are computed from, and others, in the order they are stored in."""
    from_views = {name for view in declared for feature in view.features for name in view.lineage(feature)}
    wanted = from_views | {*TOTAL_ORDER, INGEST_TIME, *others}
    return [name for name in (*EVENT_TYPES, SPLIT) if name in wanted]


def in_pieces(events: pl.DataFrame, entity: Entity, size: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """A bucket's events, `size` at a time, each time with all events before them that they may see.

    Takes events sorted by (id, event_time, source_row); no events are one piece. This is what bounds the memory that
    one user with a fifth of all events takes.
    """
    for start in range(0, max(events.height, 1), size):
        keys, first = events[start : start + size], 0
        if entity.key is not None and start:
            ids = events.get_column(entity.key)
            first = int(ids.search_sorted(ids[start], side="left"))
        yield keys, events[first : start + keys.height]


def finish(examples: pl.DataFrame) -> pl.DataFrame:
    """Add what is derived from several features, on rows that may lack the features for it."""
    return with_item_share(examples) if _has_share(examples.columns) else examples


def _has_share(features: Collection[str]) -> bool:
    return {ITEM_EVENT_COUNT, COUNTED_EVENTS} <= set(features)


def examples_of(
    events: pl.DataFrame,
    items: pl.DataFrame,
    users: pl.DataFrame,
    history_length: int = HISTORY_LENGTH,
    declared: Sequence[FeatureView] | None = None,
) -> pl.DataFrame:
    """All examples, in the total order, computed in this process: for small data, and to check the pipeline by."""
    declared = views(history_length) if declared is None else declared
    examples = ordered = assign_splits(events)
    for entity in ENTITIES:
        if mine := views_of(entity, tuple(declared)):
            examples = features_of(mine, ordered, examples)
    numbered = finish(examples).with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE))
    return with_attributes(numbered, users, items).select(example_columns(declared))


def with_attributes(examples: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Add `user_attributes` and `item_attributes`: empty lists where there are none."""
    for table, key, name in ((users, USER_ID, USER_ATTRIBUTES), (items, ITEM_ID, ITEM_ATTRIBUTES)):
        attributes = table.select(key, pl.col(ATTRIBUTES).alias(name))
        examples = examples.join(attributes, on=key, how="left", maintain_order="left").with_columns(
            pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String)))
        )
    return examples


EXAMPLE_COLUMNS = example_columns(views(HISTORY_LENGTH))
"""Columns of an example of the declared views, in order."""
