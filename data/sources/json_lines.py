"""Rows of JSON Lines files: one object a line. What is not costs that line alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import polars as pl

from cluster.errors import TowerlineError
from data.sources.chunk import Broken, Chunk
from data.sources.location import DataFile
from data.sources.text import is_undecodable, open_text, printable

LINES_PER_CHUNK = 50_000
LINES_TO_LOOK_AT = 1_000
"""Lines at the beginning of a file that must show all columns that events are made of."""

Row = dict[str, str | None]


@dataclass(frozen=True)
class JsonLinesPart:
    """A JSON Lines file. Everything in it is read as text: numbers exactly as written, a list as `a|b`."""

    file: DataFile

    @property
    def name(self) -> str:
        """The file."""
        return self.file.name

    def columns(self) -> list[str]:
        """Keys of the first lines. Raises TowerlineError if none of them is an object."""
        keys: dict[str, None] = {}
        with open_text(self.file) as file:
            for text in islice(file, LINES_TO_LOOK_AT):
                row = _parse(text)
                keys.update(dict.fromkeys(row if isinstance(row, dict) else ()))
        if not keys:
            raise TowerlineError(
                f"{self.name} is empty: none of its first {LINES_TO_LOOK_AT:,} lines is a JSON object; expected one "
                "object a line"
            )
        return list(dict.fromkeys([*keys, *(key for key, _ in self.file.partition)]))

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order. Raises TowerlineError when the file cannot be read to its end."""
        first_columns = self.columns()
        constants = [pl.lit(value, dtype=pl.String).alias(key) for key, value in self.file.partition]
        with open_text(self.file) as file:
            numbered = enumerate(file, start=1)
            while lines := list(islice(numbered, LINES_PER_CHUNK)):
                chunk = _chunk(first_columns, lines)
                yield Chunk(chunk.rows.with_columns(constants), chunk.lines, chunk.broken)


def _chunk(columns: list[str], lines: list[tuple[int, str]]) -> Chunk:
    rows: list[Row] = []
    numbers: list[int] = []
    broken: list[Broken] = []
    for number, text in lines:
        if not text.strip():
            continue
        row = _parse(text)
        if isinstance(row, str):
            broken.append(Broken(number, row, printable(text)))
        else:
            rows.append(row)
            numbers.append(number)
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    data = {name: [row.get(name) for row in rows] for name in names}
    return Chunk(pl.DataFrame(data, schema=dict.fromkeys(names, pl.String)), numbers, broken)


def _parse(text: str) -> Row | str:
    """The values as text, or what is wrong with the line."""
    if is_undecodable(text):
        return "not UTF-8"
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        cut = "" if text.endswith("\n") else ", and the file ends there without a newline"
        return f"not JSON{cut}"
    if not isinstance(value, dict):
        return "not a JSON object"
    row = {key: _text(item) for key, item in value.items()}
    return "half a character (a lone surrogate)" if any(_is_half(item) for item in row.values()) else row


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "|".join(value)
    return json.dumps(value, ensure_ascii=False)


def _is_half(text: str | None) -> bool:
    return text is not None and is_undecodable(text)
