"""The first step of an ingestion: a part of the source → good events in pieces on disk, the rest in quarantine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from data.content import to_contract
from data.events import ROWS_PER_FILE
from data.expectations import Expectations
from data.ingest.pieces import ROWS_PER_PIECE, write_piece
from data.ingest.progress import note_rows
from data.quality.findings import Findings
from data.quality.rules import Context, without_value
from data.quality.validation import (
    OPTIONAL,
    REQUIRED,
    WHOLE_ROW,
    EventRules,
    check_types,
    quarantine_table,
    rows_as_json,
    validate_events,
)
from data.schema import EVENT_ID, EVENTS, QUARANTINE, SOURCE_ROW, USER_ID
from data.sources.chunk import Broken, Chunk
from data.sources.source import Part, Source


@dataclass(frozen=True)
class NumberedPart:
    """A part of a source, and where it stands."""

    part: Part
    number: int
    file: int
    """Number of its file in the data set."""

    @property
    def first_row(self) -> int:
        """`source_row` of line 0 of its file."""
        return self.file * ROWS_PER_FILE


@dataclass(frozen=True)
class PartRead:
    """What became of the rows of a part."""

    number: int
    rows_read: int
    good: int
    reasons: Counter[str]
    """Broken rows by reason."""
    first_broken: Broken | None
    findings: Findings
    by_user: tuple[Path, ...]
    """Pieces of the good events."""
    by_id: tuple[Path, ...]
    """Pieces of their ids, if the source gave them ids."""


@dataclass(frozen=True)
class PartReader:
    """Reads parts, each on its own; a pure function of the part, but for the files in `folder`."""

    folder: Path
    source: str
    """For messages."""
    has_types: bool
    columns: Mapping[str, str]
    """Column of the contract → column of the source."""
    rules: EventRules
    expectations: Expectations
    context: Context

    def __call__(self, task: NumberedPart) -> PartRead:
        """Read, parse, check, and write the events to pieces by user. Raises TowerlineError if it cannot be read."""
        out = _Output(self.folder, task, has_ids=EVENT_ID in self.columns)
        findings, reasons, rows_read = Findings(), Counter[str](), 0
        for chunk in task.part.chunks():
            good, broken = self._validated(chunk, task.part.name)
            rows_read += len(chunk.lines) + len(chunk.broken)
            findings += Findings.of(good, broken, self.expectations, len(chunk.lines) + len(chunk.broken))
            out.add(_numbered(good, chunk, task.first_row), broken)
            reasons.update(without_value(row.reason, self.expectations.rules) for row in broken)
            note_rows(self.folder, task.number, rows_read)
        out.close()
        return PartRead(
            task.number, rows_read, out.good, reasons, out.first_broken, findings, tuple(out.by_user),
            tuple(out.by_id),
        )  # fmt: skip

    def _validated(self, chunk: Chunk, part: str) -> tuple[pl.DataFrame, list[Broken]]:
        """Good events, `source_row` being the line, and all broken rows by line."""
        self._require_columns(chunk, part)
        check_types(chunk.rows, self.columns, self.rules.time_unit, part, has_types=self.has_types)
        good, bad = validate_events(chunk.rows, chunk.lines, self.columns, self.rules)
        lines = pl.Series(chunk.lines, dtype=pl.Int64)
        raw = chunk.rows if not bad else chunk.rows.filter(lines.is_in(good.get_column(SOURCE_ROW).implode()))
        checked = self.expectations.check(good, good.get_column(SOURCE_ROW), raw, self.context)
        return checked.good, sorted([*chunk.broken, *bad, *checked.broken])

    def _require_columns(self, chunk: Chunk, part: str) -> None:
        for column in self.columns.values():
            if column not in chunk.rows.columns:
                raise TowerlineError(
                    f"{part} has no column {column!r}, which other parts of {self.source} have; give all files of a "
                    "source the columns that events are made of, or ingest them one after another with --append"
                )
        for name in (*REQUIRED, *OPTIONAL):
            column = self.rules.columns.get(name, name)
            if column in chunk.rows.columns and name not in self.columns:
                raise TowerlineError(
                    f"{part}: {column!r} ({name}) is in none of the first rows and appears by line {chunk.lines[-1]}; "
                    "write it in the first row, as null where there is none"
                )


class _Output:
    """Gathers the good events of a part to pieces, and writes the broken rows."""

    def __init__(self, folder: Path, task: NumberedPart, *, has_ids: bool) -> None:
        self._folder, self._number, self._file, self._has_ids = folder, task.number, task.part.name, has_ids
        self._waiting: list[pl.DataFrame] = []
        self._quarantine: pq.ParquetWriter | None = None
        self.by_user: list[Path] = []
        self.by_id: list[Path] = []
        self.good = 0
        self.first_broken: Broken | None = None

    def add(self, good: pl.DataFrame, broken: Sequence[Broken]) -> None:
        """More of the part."""
        names = [name for name in (*EVENTS.names, WHOLE_ROW) if name in good.columns]
        self._waiting.append(good.select(names))
        self.good += good.height
        if sum(frame.height for frame in self._waiting) >= ROWS_PER_PIECE:
            self._flush()
        if broken:
            self.first_broken = self.first_broken or broken[0]
            if self._quarantine is None:
                self._quarantine = pq.ParquetWriter(quarantine_file(self._folder, self._number), QUARANTINE)
            self._quarantine.write_table(to_contract(quarantine_table("events", self._file, broken), QUARANTINE))

    def close(self) -> None:
        """The end of the part."""
        self._flush()
        if self._quarantine is not None:
            self._quarantine.close()

    def _flush(self) -> None:
        events = pl.concat(self._waiting) if self._waiting else pl.DataFrame()
        self._waiting = []
        if events.is_empty():
            return
        name = f"{self._number:05d}-{len(self.by_user):05d}.arrow"
        self.by_user.append(write_piece(self._folder / f"user-{name}", events, USER_ID))
        if self._has_ids:
            ids = events.select(EVENT_ID, USER_ID, SOURCE_ROW)
            self.by_id.append(write_piece(self._folder / f"id-{name}", ids, EVENT_ID))


@dataclass(frozen=True)
class RepeatedReader:
    """Finds the raw rows of events that turned out to be repeated: few, so they are read again, not kept."""

    folder: Path
    expectations: Expectations
    files: tuple[Path, ...]
    """source_row and reason of all repeated events."""

    def __call__(self, task: NumberedPart) -> tuple[Counter[str], Findings]:
        """Write the rows of this part to its quarantine; gives how many there are of each reason."""
        reasons: dict[int, str] | None = None
        found: list[Broken] = []
        for chunk in task.part.chunks():
            numbers = _source_rows(chunk, task.first_row)
            if reasons is None:
                reasons = self._reasons(None if chunk.source_rows is not None else task.first_row)
            found += _raw(chunk, numbers, reasons)
        if found:
            table = to_contract(quarantine_table("events", task.part.name, found), QUARANTINE)
            pq.write_table(table, repeated_file(self.folder, task.number))
        findings = Findings.of(pl.DataFrame(), found, self.expectations, 0)
        return Counter(without_value(row.reason, self.expectations.rules) for row in found), findings

    def _reasons(self, first_row: int | None) -> dict[int, str]:
        """source_row → reason, of one file or, if rows keep their numbers, of all."""
        row = pl.col(SOURCE_ROW)
        is_here = pl.lit(value=True) if first_row is None else row.is_between(first_row, first_row + ROWS_PER_FILE - 1)
        return dict(pl.concat([pl.read_parquet(file).filter(is_here) for file in self.files]).iter_rows())


def numbered_parts(source: Source, first_file: int) -> list[NumberedPart]:
    """The parts of a source in order; parts of one name after another are of one file."""
    parts: list[NumberedPart] = []
    file, previous = first_file - 1, None
    for number, part in enumerate(source.parts()):
        file += part.name != previous
        previous = part.name
        parts.append(NumberedPart(part, number, file))
    return parts


def next_file(parts: Sequence[NumberedPart], first_file: int) -> int:
    """The number of the file that may be read after these."""
    return max((part.file for part in parts), default=first_file - 1) + 1


def quarantine_file(folder: Path, number: int) -> Path:
    """Rows of a part that break the contract or a rule."""
    return folder / f"quarantine-{number:05d}.parquet"


def repeated_file(folder: Path, number: int) -> Path:
    """Rows of a part that were there before."""
    return folder / f"repeated-{number:05d}.parquet"


def _numbered(good: pl.DataFrame, chunk: Chunk, first_row: int) -> pl.DataFrame:
    """`source_row` was the line so far."""
    is_good = pl.Series(chunk.lines, dtype=pl.Int64).is_in(good.get_column(SOURCE_ROW).implode())
    return good.with_columns(_source_rows(chunk, first_row).filter(is_good).alias(SOURCE_ROW))


def _source_rows(chunk: Chunk, first_row: int) -> pl.Series:
    if chunk.source_rows is not None:
        return chunk.source_rows
    return pl.Series(chunk.lines, dtype=pl.Int64) + first_row


def _raw(chunk: Chunk, numbers: pl.Series, reasons: Mapping[int, str]) -> list[Broken]:
    is_wanted = pl.Series([number in reasons for number in numbers], dtype=pl.Boolean)
    if not is_wanted.any():
        return []
    lines = pl.Series(chunk.lines, dtype=pl.Int64).filter(is_wanted)
    why = [reasons[number] for number in numbers.filter(is_wanted)]
    return [Broken(*row) for row in zip(lines, why, rows_as_json(chunk.rows.filter(is_wanted)), strict=True)]
