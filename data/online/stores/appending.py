"""What every store does with appended events: which are new, their source rows and their ingest stamps."""

import time
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from cluster.errors import TowerlineError
from data.events import FIRST_APPENDED_ROW
from data.schema import EVENT_ID, EVENTS, INGEST_TIME, SOURCE_ROW
from data.views import EVENT_TYPES


@dataclass(frozen=True)
class Counters:
    """Where appended events go on; changed under the store's write lock only."""

    next_row: int = FIRST_APPENDED_ROW
    """`source_row` of the next appended event."""
    last_stamp: int = 0
    """The newest ingest_time that the store gave (µs)."""


def to_contract(events: pl.DataFrame) -> pl.DataFrame:
    """Events in the contract's types, each id once. Raises TowerlineError for a null where there may be none."""
    if INGEST_TIME not in events.columns:
        events = events.with_columns(pl.lit(None).alias(INGEST_TIME))
    columns = {name: kind for name, kind in EVENT_TYPES.items() if name != SOURCE_ROW}
    found = events.select(pl.col(name).cast(kind) for name, kind in columns.items())
    for field in EVENTS:
        if field.name in columns and field.name != INGEST_TIME and not field.nullable:
            missing = found.get_column(field.name).null_count()
            if missing:
                raise TowerlineError(f"{missing} of {found.height} events have no {field.name}; none was stored")
    return found.unique(EVENT_ID, keep="first", maintain_order=True)


def numbered(events: pl.DataFrame, known: Collection[str], counters: Counters) -> tuple[pl.DataFrame, Counters]:
    """The events whose id is not known, with source rows and stamps, and where the next ones go on."""
    new = events.filter(~pl.col(EVENT_ID).is_in(list(known))) if known else events
    begin = max(time.time_ns() // 1_000, counters.last_stamp + 1)
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    stamp = (begin + place).cast(pl.Datetime("us", "UTC"))
    rows = new.with_columns(
        pl.coalesce(INGEST_TIME, stamp).alias(INGEST_TIME), (counters.next_row + place).alias(SOURCE_ROW)
    )
    return rows.select(EVENTS.names), Counters(counters.next_row + new.height, begin + new.height)
