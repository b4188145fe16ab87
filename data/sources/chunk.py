"""What a reader of raw data gives out: rows as they are, where they stood, and what could not be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl


class Broken(NamedTuple):
    """A row that could not be read."""

    line: int
    """1-based line of the file."""
    reason: str
    row: str
    """The row as it was."""


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a file."""

    rows: pl.DataFrame
    """The file's own columns and types."""
    lines: Sequence[int]
    """Where each row stood: 1-based line of a text file, 1-based row of a Parquet file."""
    broken: list[Broken]
    source_rows: pl.Series | None = None
    """`source_row` of each row, if the rows have been events before and keep it."""
