"""Rows of Parquet files, cut by row groups so that a large file is read by several tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from data.sources.chunk import Chunk
from data.sources.location import DataFile

ROWS_PER_CHUNK = 65_536
ROWS_PER_PART = 1_000_000
"""Row groups are put together to about so many rows."""


@dataclass(frozen=True)
class ParquetPart:
    """Some consecutive row groups of a Parquet file."""

    file: DataFile
    row_groups: tuple[int, ...]
    first_row: int
    """1-based."""

    @property
    def name(self) -> str:
        """The file."""
        return self.file.name

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order. Raises TowerlineError if the file is truncated or corrupt."""
        line = self.first_row
        constants = [pl.lit(value, dtype=pl.String).alias(key) for key, value in self.file.partition]
        with _open(self.file, checked=True) as parquet:
            for batch in parquet.iter_batches(ROWS_PER_CHUNK, row_groups=self.row_groups):
                batch.validate(full=True)
                rows = pl.DataFrame(batch).with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String), *constants)
                yield Chunk(rows, range(line, line + rows.height), [])
                line += rows.height


def parquet_columns(file: DataFile) -> list[str]:
    """Names of the columns, partitions included. Raises TowerlineError if the file is truncated or corrupt."""
    with _open(file) as parquet:
        return list(dict.fromkeys([*parquet.schema_arrow.names, *(key for key, _ in file.partition)]))


def parquet_parts(file: DataFile) -> list[ParquetPart]:
    """The file in parts of about ROWS_PER_PART rows."""
    with _open(file) as parquet:
        metadata = parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    parts: list[ParquetPart] = []
    groups: list[int] = []
    first = following = 1
    for group, size in enumerate(sizes):
        if groups and following + size - first > ROWS_PER_PART:
            parts.append(ParquetPart(file, tuple(groups), first))
            groups, first = [], following
        groups.append(group)
        following += size
    return [*parts, ParquetPart(file, tuple(groups), first)] if groups else parts


@contextmanager
def _open(file: DataFile, *, checked: bool = False) -> Iterator[pq.ParquetFile]:
    try:
        with file.open() as raw, pq.ParquetFile(raw, page_checksum_verification=checked) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise TowerlineError(
            f"{file.name} is no Parquet file, truncated or corrupt ({error}); get a whole copy"
        ) from error
