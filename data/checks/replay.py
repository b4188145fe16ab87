"""What a read of the online store must have given, computed offline from the events.

A read is of one entity as of a moment, and held what the store knew then. Mostly that is what was known at that
moment, and the point-in-time join answers for the read as it does for an example. Where a write raced the read, the
newest `ingest_time` that was read (`known_until`) tells which events counted. As in the store, a moment before what
happened or became known already counts as the moment of that (see `data.online.entity_state`).
"""

from collections.abc import Sequence

import polars as pl

from data.features import NEVER
from data.schema import EVENT_TIME, INGEST_TIME, SOURCE_ROW
from data.temporal.point_in_time import features_of
from data.views import FeatureView

KNOWN_UNTIL = "known_until"
READ = "read"
"""The number of a read."""

READS_AT_ONCE = 64
"""So many reads have copies of their entity's events in memory at once."""

_KNOWN_AT, _NEWEST = "_known_at", "_newest"


def replay(
    views: Sequence[FeatureView], events: pl.DataFrame, reads: pl.DataFrame, brought: pl.DataFrame | None = None
) -> pl.DataFrame:
    """The features of each read: its number and a column per feature, by number. `views` are those of one entity.

    `events`: all events of the entities that were read, whenever they became known. `reads`: a number (`read`), the
    entity's id (none for everything), event_time (the moment) and known_until. `brought`: further events that single
    reads held alone, each with the number of its read.
    """
    key = views[0].entity.key
    columns = [feature for view in views for feature in view.features]
    numbered = _with_known(events, reads, key)
    is_plain = pl.col(_KNOWN_AT).eq_missing(pl.col(KNOWN_UNTIL)) & (pl.col(_NEWEST) <= pl.col(EVENT_TIME)).fill_null(
        value=True
    )
    if brought is not None:
        is_plain &= ~pl.col(READ).is_in(brought.get_column(READ).to_list())
    plain, others = numbered.filter(is_plain), numbered.filter(~is_plain)
    parts = [_as_of(views, events, plain, key)]
    # Reads of everything have no id to keep their events apart by, so each is computed by itself.
    for part in others.iter_slices(READS_AT_ONCE if key else 1):
        parts.append(_by_what_was_read(views, events, part, brought, key))
    return pl.concat(parts).sort(READ).select(READ, *columns)


def _with_known(events: pl.DataFrame, reads: pl.DataFrame, key: str | None) -> pl.DataFrame:
    """Add the newest ingest_time, and the newest event_time, of what was known at the moment of each read."""
    newest = pl.col(EVENT_TIME).cum_max()
    by_arrival = events.sort(INGEST_TIME).select(
        *([key] if key else []),
        pl.col(INGEST_TIME).alias(_KNOWN_AT),
        (newest.over(key) if key else newest).alias(_NEWEST),
    )
    return reads.sort(EVENT_TIME).join_asof(
        by_arrival, left_on=EVENT_TIME, right_on=_KNOWN_AT, by=key, coalesce=False, check_sortedness=False
    )


def _as_of(views: Sequence[FeatureView], events: pl.DataFrame, reads: pl.DataFrame, key: str | None) -> pl.DataFrame:
    """The features of reads as of their moments."""
    keys = reads.select(READ, *([key] if key else []), EVENT_TIME, pl.lit(NEVER).alias(SOURCE_ROW))
    return features_of(views, events, keys)


def _by_what_was_read(
    views: Sequence[FeatureView],
    events: pl.DataFrame,
    reads: pl.DataFrame,
    brought: pl.DataFrame | None,
    key: str | None,
) -> pl.DataFrame:
    """The features of reads, each from the events that it held, as if every read were of an entity of its own."""
    limits = reads.select(READ, KNOWN_UNTIL, *([key] if key else []))
    paired = events.join(limits, on=key) if key else events.join(limits, how="cross")
    held = [paired.filter(pl.col(INGEST_TIME) <= pl.col(KNOWN_UNTIL)).select(READ, *events.columns)]
    if brought is not None:
        held.append(brought.join(reads.select(READ), on=READ, how="semi").select(READ, *events.columns))
    past = pl.concat(held)
    newest = past.group_by(READ).agg(pl.col(EVENT_TIME).max().alias(_NEWEST))
    moments = reads.drop(_NEWEST).join(newest, on=READ, how="left")
    asked = moments.select(READ, pl.max_horizontal(EVENT_TIME, KNOWN_UNTIL, _NEWEST).alias(EVENT_TIME))
    own = [pl.col(READ).cast(pl.String).alias(key)] if key else []
    return _as_of(views, past.with_columns(*own, pl.col(EVENT_TIME).alias(INGEST_TIME)), asked.with_columns(own), key)
