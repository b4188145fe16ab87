"""Events that are in memory already, such as those that were appended to the online store, as a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from data.schema import SOURCE_ROW
from data.sources.chunk import Chunk

ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class EventsSource:
    """A frame of events. What it says of `event_id`, `ingest_time` and `source_row` is kept."""

    name: str
    """For messages and manifests."""
    events: pl.DataFrame
    has_types: ClassVar[bool] = True

    def columns(self) -> list[str]:
        """Names of the columns."""
        return [name for name in self.events.columns if name != SOURCE_ROW]

    def parts(self) -> "list[EventsSource]":
        """One: the frame. Raises ValueError if two of its events claim the same `source_row`."""
        if SOURCE_ROW in self.events.columns and self.events.get_column(SOURCE_ROW).is_duplicated().any():
            raise ValueError(f"{self.name}: {SOURCE_ROW} is not unique; drop the repeated rows, or the column")
        return [self]

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        line = 1
        for rows in self.events.iter_slices(ROWS_PER_CHUNK):
            source_rows = rows.get_column(SOURCE_ROW) if SOURCE_ROW in rows.columns else None
            yield Chunk(rows.select(self.columns()), range(line, line + rows.height), [], source_rows)
            line += rows.height
