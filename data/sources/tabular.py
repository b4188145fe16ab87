"""Tables that people bring along: Parquet or CSV, whatever the names of their columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from data.sources.chunk import Chunk
from data.sources.csv_rows import CsvFile

ROWS_PER_CHUNK = 65_536
SUFFIXES = ".parquet, .csv, .csv.gz, .tsv or .tsv.gz"


class Table(Protocol):
    """A file of rows; it can be read more than once."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def has_types(self) -> bool:
        """Whether columns have types; else everything is text."""
        ...

    def columns(self) -> list[str]:
        """Names of the columns."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        ...


def open_table(path: Path, delimiter: str | None = None) -> Table:
    """The table in `path`, by its suffix; `delimiter` is that of a CSV (a comma, in a .tsv a tab).

    Raises TowerlineError if there is no such file or the suffix says nothing.
    """
    if not path.is_file():
        raise TowerlineError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; pass a file {SUFFIXES}")
    if delimiter is not None and len(delimiter := delimiter.replace("\\t", "\t")) != 1:
        raise TowerlineError(f"--delimiter is {delimiter!r}, expected one character")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        return ParquetFile(path)
    if name.endswith((".csv", ".tsv")):
        return CsvFile(path, delimiter or ("\t" if name.endswith(".tsv") else ","))
    raise TowerlineError(f"{path}: unknown kind of file; it must end in {SUFFIXES}")


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file."""

    path: Path
    has_types: ClassVar[bool] = True

    def columns(self) -> list[str]:
        """Names of the columns. Raises TowerlineError if the file is truncated or corrupt."""
        try:
            return list(pq.read_schema(self.path).names)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order. Raises TowerlineError if the file is truncated or corrupt."""
        line = 1
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(ROWS_PER_CHUNK):
                    batch.validate(full=True)
                    rows = pl.DataFrame(batch).with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
                    yield Chunk(rows, list(range(line, line + rows.height)), [])
                    line += rows.height
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> TowerlineError:
        return TowerlineError(f"{self.path} is no Parquet file, truncated or corrupt ({error}); get a whole copy")
