"""What one task of a feature build does: a bucket of items, all events together, or a bucket of users.

Every task reads and writes files and gives back a note. Run again, it writes the same bytes.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data.buckets import bucket_numbers
from data.dataset import Dataset
from data.offline.examples import (
    EVENT_COLUMNS,
    columns_needed,
    example_columns,
    features_in,
    finish,
    in_pieces,
)
from data.offline.slices import BySourceRow, read_slices, write_slices
from data.offline.store import ADDED_WHEN_READ, Partitioning, partitioning_of, split_by_date, write_bucket
from data.schema import ITEM_ID, SOURCE_ROW, USER_ID
from data.splits import TOTAL_ORDER
from data.temporal.point_in_time import features_of
from data.views import EVERYTHING, ITEM, USER, FeatureView, views_of

Note = dict[str, Any]
"""What a finished task says: `files`, those it wrote, and `partitions`, rows by date. As JSON has it."""

_USER_BUCKET = "_user_bucket"
KEYS_AT_ONCE = 500_000
"""Features are computed for so many events at a time, however many one user or one item has."""
EVENTS_AT_ONCE = 4_000_000
"""Features of everything are computed for so many events at a time."""


@dataclass(frozen=True)
class Build:
    """One build of examples, small enough to go to every task."""

    dataset: Dataset
    views: tuple[FeatureView, ...]
    output: Path
    """Folder of the examples."""
    work: Path
    """Folder of what is needed on the way."""

    @property
    def buckets(self) -> int:
        """Buckets of users, and of items."""
        return self.dataset.manifest.buckets

    @property
    def partitioning(self) -> Partitioning:
        """How the examples are partitioned by date."""
        return partitioning_of(self.dataset.manifest.first_event_time, self.dataset.manifest.last_event_time)

    @property
    def stored_columns(self) -> list[str]:
        """Columns of the examples as they are stored."""
        return [name for name in example_columns(self.views) if name not in ADDED_WHEN_READ]

    @property
    def other_tasks(self) -> list[int]:
        """What there is to do before the buckets of users: the buckets of items, and all events as the one after."""
        items = range(self.buckets) if views_of(ITEM, self.views) else ()
        return [*([self.buckets] if views_of(EVERYTHING, self.views) else []), *items]

    def other_task(self, task: int) -> Note:
        """Features of the items of a bucket, or of everything, for each of their events."""
        return self._everything() if task == self.buckets else self._item_bucket(task)

    def user_bucket(self, bucket: int) -> Note:
        """The finished examples of the users of a bucket."""
        views = views_of(USER, self.views)
        events = self.dataset.bucket(USER, bucket, columns_needed(views, *EVENT_COLUMNS))
        others = [BySourceRow(read_slices(files, bucket, self.buckets)) for files in self._slices()]
        files: list[Path] = []
        partitions: Counter[str] = Counter()
        for number, (keys, past) in enumerate(in_pieces(events, USER, KEYS_AT_ONCE)):
            rows = features_of(views, past, keys) if views else keys
            name = f"bucket-{bucket:05d}" + (f"-{number:03d}" if number else "")
            for date, part in split_by_date(rows, self.partitioning).items():
                brought = [each.at(part.get_column(SOURCE_ROW)).get_columns() for each in others]
                whole = finish(part.hstack(list(itertools.chain.from_iterable(brought))))
                files += write_bucket(self.output, name, {date: whole.select(self.stored_columns)})
                partitions[date] += part.height
        return {"files": [str(file) for file in files], "partitions": partitions}

    def _item_bucket(self, bucket: int) -> Note:
        views = views_of(ITEM, self.views)
        events = self.dataset.bucket(ITEM, bucket, columns_needed(views, ITEM_ID, USER_ID))
        numbered = events.with_columns(bucket_numbers(events.get_column(USER_ID), self.buckets).alias(_USER_BUCKET))
        return self._write_slices(views, in_pieces(numbered, ITEM, KEYS_AT_ONCE), self._file(bucket))

    def _everything(self) -> Note:
        """The one task that holds all events, about 30 bytes of each."""
        views = views_of(EVERYTHING, self.views)
        columns = columns_needed(views)
        parts = []
        for bucket in range(self.buckets):
            events = self.dataset.bucket(USER, bucket, columns)
            parts.append(events.with_columns(pl.lit(bucket, dtype=pl.Int32).alias(_USER_BUCKET)))
        ordered = pl.concat(parts).sort(TOTAL_ORDER)
        return self._write_slices(views, in_pieces(ordered, EVERYTHING, EVENTS_AT_ONCE), self._file(self.buckets))

    def _write_slices(
        self, views: tuple[FeatureView, ...], pieces: Iterator[tuple[pl.DataFrame, pl.DataFrame]], file: Path
    ) -> Note:
        columns = [SOURCE_ROW, *features_in(views)]
        parts = (
            (keys.get_column(_USER_BUCKET), features_of(views, past, keys).select(columns)) for keys, past in pieces
        )
        write_slices(file, parts, self.buckets)
        return {"files": [str(file)]}

    def _slices(self) -> list[list[Path]]:
        """Files with the features of items, and of everything."""
        items = [self._file(task) for task in self.other_tasks if task < self.buckets]
        everything = [self._file(task) for task in self.other_tasks if task == self.buckets]
        return [files for files in (items, everything) if files]

    def _file(self, task: int) -> Path:
        return self.work / f"slices-{task:05d}.arrow"
