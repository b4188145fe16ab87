"""The events of one version of a data set, so that they are found again, and proved to be the same, in a later one.

What is added to a data set has higher source rows than what was there, of files and of online events alike, so two
numbers tell both apart; a digest of the event ids tells whether a data set was added to or is another one.
"""

import hashlib
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from cluster.errors import TowerlineError
from data.events import FIRST_APPENDED_ROW
from data.schema import EVENT_ID, SOURCE_ROW

IDS_AT_ONCE = 100_000


class KnownEvents(BaseModel):
    """All events of a data version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_version: str
    """Of the data set that held these events and no other."""
    events: PositiveInt
    """How many they are."""
    file_rows: NonNegativeInt
    """Events that came from files have a `source_row` below this."""
    online_rows: NonNegativeInt
    """Events that were appended online have a `source_row` below this."""
    digest: str
    """SHA-256 of the sorted event ids."""

    @classmethod
    def of(cls, data_version: str, events: pl.DataFrame) -> Self:
        """Those of a data set. `events`: all of it, with event_id and source_row."""
        rows = events[SOURCE_ROW]
        of_files, online = rows.filter(rows < FIRST_APPENDED_ROW), rows.filter(rows >= FIRST_APPENDED_ROW)
        return cls(
            data_version=data_version,
            events=events.height,
            file_rows=0 if of_files.is_empty() else int(of_files.sort()[-1]) + 1,
            online_rows=FIRST_APPENDED_ROW if online.is_empty() else int(online.sort()[-1]) + 1,
            digest=_digest(events),
        )

    @property
    def label(self) -> str:
        """The beginning of the data version."""
        return self.data_version[:12]

    @property
    def are_known(self) -> pl.Expr:
        """Whether a row with `source_row` is one of these events."""
        row = pl.col(SOURCE_ROW)
        return pl.when(row < FIRST_APPENDED_ROW).then(row < self.file_rows).otherwise(row < self.online_rows)

    def require_in(self, events: pl.DataFrame, whose: str) -> None:
        """Raise TowerlineError unless `events`, with event_id and source_row, hold all of these and as they were.

        `whose`: what has seen these events, for the message.
        """
        found = events.filter(self.are_known)
        if found.height == self.events and _digest(found) == self.digest:
            return
        problem = (
            f"holds {found.height:,} events in their place" if found.height != self.events else "holds others instead"
        )
        raise TowerlineError(
            f"{whose} has seen the {self.events:,} events of data version {self.label}, and the data set as it is now "
            f"{problem}: it was not added to (`python -m jobs.ingest_events --append`) but replaced; train from scratch"
        )


def _digest(events: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for ids in events.select(pl.col(EVENT_ID).sort()).iter_slices(IDS_AT_ONCE):
        digest.update("".join(f"{len(event_id)}:{event_id}" for event_id in ids[EVENT_ID]).encode())
    return digest.hexdigest()
