"""Rows of a CSV file, a chunk at a time; a row that cannot be read costs that row alone, not its neighbours."""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TextIO

import polars as pl

from cluster.errors import TowerlineError
from data.sources.chunk import Broken, Chunk
from data.sources.location import DataFile
from data.sources.text import is_undecodable, open_text, printable

LINES_PER_CHUNK = 50_000
LONGEST_RECORD = 1_000
"""Lines that one quoted record may span: beyond that, its opening quote is taken for a slip."""

Line = tuple[int, str]
"""1-based number and text, newline included."""


@dataclass(frozen=True)
class CsvPart:
    """A CSV file with a header, UTF-8, plain or gzipped (`.gz`). All its columns are text.

    A quoted field may span lines. Where a quote is never closed, or fields are too few or too many, the first line of
    the record is given out as broken and reading goes on with the next line. Empty lines are passed over.
    """

    file: DataFile
    delimiter: str = ","
    quoted: bool = True
    """Whether `"` quotes a field; if not it is a character like any other."""

    @property
    def name(self) -> str:
        """The file."""
        return self.file.name

    def columns(self) -> list[str]:
        """Names in the header. Raises TowerlineError if there is no usable header."""
        with open_text(self.file) as file:
            return [*self._header(file), *(key for key, _ in self.file.partition)]

    def chunks(self) -> Iterator[Chunk]:
        """The data rows in the order of the file. Raises TowerlineError when the file cannot be read to its end."""
        with open_text(self.file) as file:
            names = self._header(file)
            constants = [pl.lit(value, dtype=pl.String).alias(key) for key, value in self.file.partition]
            lines = deque[Line]()
            following = enumerate(file, start=2)
            while True:
                lines.extend(islice(following, LINES_PER_CHUNK - len(lines)))
                if not lines:
                    return
                chunk = self._chunk(names, lines, following)
                yield replace(chunk, rows=chunk.rows.with_columns(constants))

    def _chunk(self, names: list[str], lines: deque[Line], following: Iterator[Line]) -> Chunk:
        """Empties `lines`, and reads on in the file only to the end of a record that is open there."""
        plain = self._plain_rows(names, lines)
        if plain is not None:
            numbers = [number for number, _ in lines]
            lines.clear()
            return Chunk(_frame(names, plain), numbers, [])
        numbers = []
        rows: list[list[str]] = []
        broken: list[Broken] = []
        while lines:
            number, text = lines.popleft()
            if not text.strip("\r\n"):
                continue
            record = self._record((number, text), lines, following)
            row = self._parse(record)
            reason = row if isinstance(row, str) else _fault(row, names, record)
            if reason is None and not isinstance(row, str):
                numbers.append(number)
                rows.append(row)
                continue
            lines.extendleft(zip(range(number + len(record) - 1, number, -1), reversed(record[1:]), strict=True))
            broken.append(Broken(number, reason or "", printable(text)))
        return Chunk(_frame(names, rows), numbers, broken)

    def _plain_rows(self, names: list[str], lines: deque[Line]) -> list[list[str]] | None:
        """All rows at once, if there is nothing about these lines to look at twice: no quotes, no faults."""
        texts = [text for _, text in lines]
        whole = "".join(texts)
        if '"' in whole or is_undecodable(whole):
            return None
        rows = list(csv.reader(texts, delimiter=self.delimiter, quoting=csv.QUOTE_NONE))
        return rows if all(len(row) == len(names) for row in rows) and len(rows) == len(texts) else None

    def _record(self, first: Line, lines: deque[Line], following: Iterator[Line]) -> list[str]:
        """The lines of a record: more than one while a quote is open. Takes them from `lines`, then from the file."""
        record = [first[1]]
        is_open = self.quoted and first[1].count('"') % 2 == 1
        while is_open and len(record) < LONGEST_RECORD:
            line = lines.popleft() if lines else next(following, None)
            if line is None:
                break
            record.append(line[1])
            is_open = line[1].count('"') % 2 == 0
        return record

    def _parse(self, record: list[str]) -> list[str] | str:
        """The fields, or what is wrong."""
        if not self.quoted:
            return record[0].rstrip("\r\n").split(self.delimiter)
        try:
            rows = list(csv.reader(record, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return "broken quotes"
        return rows[0] if len(rows) == 1 else "broken quotes"

    def _header(self, file: TextIO) -> list[str]:
        first = file.readline()
        if not first.strip():
            raise TowerlineError(f"{self.name} is empty: it has no header and no rows")
        if "\x00" in first or is_undecodable(first):
            raise TowerlineError(f"{self.name} is not UTF-8 text; pass a CSV in UTF-8, or Parquet with suffix .parquet")
        names = self._parse([first])
        if isinstance(names, str):
            raise TowerlineError(f"{self.name}: line 1, the header: {names}")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise TowerlineError(f"{self.name}: column {repeated[0]!r} appears twice in the header; rename one")
        return names


def _frame(names: list[str], rows: list[list[str]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    data = {name: list(column) for name, column in zip(names, columns, strict=True)}
    return pl.DataFrame(data, schema=dict.fromkeys(names, pl.String))


def _fault(row: list[str], names: list[str], record: list[str]) -> str | None:
    if len(row) != len(names):
        cut = "" if record[-1].endswith(("\n", "\r")) else ", and the file ends there without a newline"
        return f"wrong number of fields: {len(row)} instead of {len(names)}{cut}"
    if any(is_undecodable(line) for line in record):
        return "not UTF-8"
    return None
