"""The second step of an ingestion: pieces → the bucket files of a version, users first, then items.

A task reads what belongs to its bucket from all pieces, and nothing else; none of them sees the whole.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from data.buckets import BUCKET, bucket_file, with_bucket
from data.dataset import ITEMS_FILE, STORED_EVENTS, Dataset, bucket_folder, write_bucket
from data.events import ROWS_PER_FILE, with_event_ids
from data.expectations import Expectations
from data.ingest.pieces import read_pieces, write_piece
from data.quality.validation import REASON, REPEATED_ID, WHOLE_ROW, find_repeated
from data.schema import EVENT_ID, EVENT_TIME, EVENTS, ITEM_ID, SOURCE_ROW, USER_ID
from data.splits import assign_splits, count_held_out_users
from data.views import EVENT_TYPES, ITEM, USER

IS_NEW = "is_new"
ORDER = "order"


@dataclass(frozen=True)
class UserBucket:
    """What was written of a bucket of users."""

    bucket: int
    content: str
    """Content version."""
    events: int
    users: int
    held_out_users: int
    first: datetime | None
    last: datetime | None
    already_there: int
    """Events that the version before this one has."""
    repeated_in: frozenset[int]
    """Numbers of the files that repeated an event."""
    repeated: Path | None
    """source_row and reason of those."""
    by_item: Path
    """The events, in a piece by item."""

    def remove(self, version: Path) -> None:
        """Undo it, to merge into another number of buckets."""
        for file in (self.by_item, self.repeated, bucket_file(version / bucket_folder(USER), self.bucket)):
            if file is not None:
                file.unlink()


@dataclass(frozen=True)
class UserMerger:
    """Merges the pieces of a bucket of users into its file."""

    version: Path
    """Folder of the new version."""
    folder: Path
    """For what is needed no longer than the ingestion lasts."""
    buckets: int
    pieces: tuple[Path, ...]
    repeated_ids: tuple[Path, ...] | None
    """Pieces of the events whose id was there before; None if the source gave no ids."""
    previous: Dataset | None
    """The version that the events are added to."""
    expectations: Expectations

    def __call__(self, bucket: int) -> UserBucket:
        """Drop what is repeated, give ids and splits, sort and write."""
        read = pl.concat([self._nothing(), *read_pieces(self.pieces, USER_ID, bucket, self.buckets)]).sort(SOURCE_ROW)
        old = self._old(bucket)
        unique, repeated, known = self._without_repeated_ids(read, bucket)
        new = unique.join(old, on=EVENT_ID, how="anti")
        known += unique.height - new.height
        for rule in self.expectations.unique_rules:
            ordered = pl.concat([old, new.select(EVENTS.names)]).with_row_index(ORDER)
            broken = rule.repeated(ordered, ORDER).join(ordered.select(ORDER, SOURCE_ROW, EVENT_ID), on=ORDER)
            broken = broken.join(old, on=EVENT_ID, how="anti").select(SOURCE_ROW, REASON)
            repeated = pl.concat([repeated, broken])
            new = new.join(broken, on=SOURCE_ROW, how="anti")
        events = assign_splits(pl.concat([old, new.select(EVENTS.names)]))
        times = events.get_column(EVENT_TIME)
        file = self.folder / f"again-{bucket:05d}.parquet"
        if not repeated.is_empty():
            pq.write_table(repeated.to_arrow(), file)
        return UserBucket(
            bucket=bucket,
            content=write_bucket(self.version, USER, bucket, events),
            events=events.height,
            users=events.get_column(USER_ID).n_unique(),
            held_out_users=count_held_out_users(events),
            first=times.min(),  # type: ignore[arg-type]
            last=times.max(),  # type: ignore[arg-type]
            already_there=known,
            repeated_in=frozenset(repeated.get_column(SOURCE_ROW) // ROWS_PER_FILE),
            repeated=None if repeated.is_empty() else file,
            by_item=write_piece(
                self.folder / f"item-{bucket:05d}.arrow", events.select(STORED_EVENTS.names).sort(SOURCE_ROW), ITEM_ID
            ),
        )

    def _without_repeated_ids(self, read: pl.DataFrame, bucket: int) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        """The events with ids, those that are repeated in the source, and the number of those known before."""
        if self.repeated_ids is None:
            repeated = find_repeated(read)
            return with_event_ids(read.join(repeated, on=SOURCE_ROW, how="anti")), repeated, 0
        found = read_pieces(self.repeated_ids, USER_ID, bucket, self.buckets)
        again = pl.concat([pl.DataFrame(schema={USER_ID: pl.String, SOURCE_ROW: pl.Int64, IS_NEW: pl.Boolean}), *found])
        rest = read.join(again, on=SOURCE_ROW, how="anti")
        repeated = again.filter(IS_NEW).select(SOURCE_ROW, pl.lit(REPEATED_ID).alias(REASON))
        return rest, repeated, again.height - repeated.height

    def _nothing(self) -> pl.DataFrame:
        schema = dict(EVENT_TYPES)
        if self.repeated_ids is not None:
            return pl.DataFrame(schema={**schema, WHOLE_ROW: pl.UInt64})
        return pl.DataFrame(schema={**schema, WHOLE_ROW: pl.UInt64}).drop(EVENT_ID)

    def _old(self, bucket: int) -> pl.DataFrame:
        if self.previous is None:
            return pl.DataFrame(schema=EVENT_TYPES)
        there = self.previous.manifest.buckets
        wanted = range(bucket, there, self.buckets) if there > self.buckets else [bucket % there]
        rows = pl.concat([self.previous.bucket(USER, number, EVENTS.names) for number in wanted])
        return with_bucket(rows, USER_ID, self.buckets).filter(pl.col(BUCKET) == bucket).drop(BUCKET)


@dataclass(frozen=True)
class IdChecker:
    """Finds the events whose id was there before, in a bucket of ids."""

    folder: Path
    buckets: int
    pieces: tuple[Path, ...]
    old: tuple[Path, ...]
    """Pieces of the ids of the version that the events are added to."""

    def __call__(self, bucket: int) -> Path | None:
        """A piece by user of `source_row` and whether it is the source that repeats it; None if there are none."""
        columns = [EVENT_ID, USER_ID, SOURCE_ROW]
        old = pl.concat(read_pieces(self.old, EVENT_ID, bucket, self.buckets) or [_no_ids()]).get_column(EVENT_ID)
        rows = pl.concat([_no_ids(), *read_pieces(self.pieces, EVENT_ID, bucket, self.buckets)])
        ids = (
            rows.select(columns)
            .sort(SOURCE_ROW)
            .with_columns(
                pl.col(EVENT_ID).is_first_distinct().not_().alias(IS_NEW), is_old=pl.col(EVENT_ID).is_in(old.implode())
            )
        )
        again = ids.filter(pl.col(IS_NEW) | pl.col("is_old"))
        if again.is_empty():
            return None
        found = again.select(USER_ID, SOURCE_ROW, pl.col(IS_NEW) & ~pl.col("is_old"))
        return write_piece(self.folder / f"id-again-{bucket:05d}.arrow", found, USER_ID)


@dataclass(frozen=True)
class OldIds:
    """Writes the ids of a bucket of the version before to a piece, by id."""

    folder: Path
    previous: Dataset

    def __call__(self, bucket: int) -> Path:
        """Path of the piece."""
        ids = self.previous.bucket(USER, bucket, [EVENT_ID, USER_ID, SOURCE_ROW])
        return write_piece(self.folder / f"old-{bucket:05d}.arrow", ids, EVENT_ID)


@dataclass(frozen=True)
class ItemMerger:
    """Merges the pieces of a bucket of items into its file."""

    version: Path
    buckets: int
    pieces: tuple[Path, ...]

    def __call__(self, bucket: int) -> int:
        """Sort and write; gives the number of items, those of the catalogue included."""
        empty = pl.DataFrame(STORED_EVENTS.empty_table())
        events = pl.concat([empty, *read_pieces(self.pieces, ITEM_ID, bucket, self.buckets)])
        write_bucket(self.version, ITEM, bucket, events)
        catalogue = pl.read_parquet(self.version / ITEMS_FILE, columns=[ITEM_ID])
        described = with_bucket(catalogue, ITEM_ID, self.buckets).filter(pl.col(BUCKET) == bucket).get_column(ITEM_ID)
        return pl.concat([events.get_column(ITEM_ID), described]).n_unique()


def _no_ids() -> pl.DataFrame:
    return pl.DataFrame(schema={EVENT_ID: pl.String, USER_ID: pl.String, SOURCE_ROW: pl.Int64})
