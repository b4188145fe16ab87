"""Raw rows → events that keep the contract, and a quarantine of those that do not, each with a reason.

What is wrong with a row costs that row; what is wrong with a column (it is missing, or of a type that cannot hold what
it should) is the file's fault and refused as a whole.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl
import pyarrow as pa

from cluster.errors import TowerlineError
from data.moments import TimeUnit, can_hold_moments, moment_us, needs_unit
from data.schema import (
    DECISION_ID,
    EVENT_ID,
    EVENT_TIME,
    EVENT_TYPE,
    INGEST_TIME,
    ITEM_ID,
    QUARANTINE,
    SOURCE_ROW,
    USER_ID,
    VALUE,
)
from data.sources.chunk import Broken

REQUIRED = (USER_ID, ITEM_ID, EVENT_TIME)
OPTIONAL = (EVENT_ID, EVENT_TYPE, VALUE, INGEST_TIME, DECISION_ID)
DEFAULT_VALUE = 1.0

WHOLE_ROW = "whole_row"
"""Hash of all columns of the raw row: tells a repeated row from a repeated deed."""

REPEATED_ID = "duplicate event: event_id was there before"
REPEATED_ROW = "duplicate event: the same row was there before"

LARGEST_FLOAT32 = 3.4028235e38
LARGEST_EXACT_FLOAT = 2**53
REASON = "reason"

Faults = list[tuple[str, pl.Expr]]
"""Reasons, each with the rows that it holds for."""


@dataclass(frozen=True)
class EventRules:
    """How the columns of a file are to be read as events."""

    now: datetime
    """Moments after this are in the future."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the contract → column of the file; a name not given stands for itself."""

    time_unit: TimeUnit | None = None
    """Unit of times that are numbers."""

    event_type: str = "interaction"
    """Type of all events of a file that has no such column."""


def resolve_columns(wanted: Mapping[str, str], available: Sequence[str], file: str) -> dict[str, str]:
    """Column of the contract → column of the file, for all columns of the contract that the file has.

    Raises TowerlineError for a name that is not in the contract and for a column that is not in the file.
    """
    names = (*REQUIRED, *OPTIONAL)
    for name, column in wanted.items():
        if name not in names:
            raise TowerlineError(
                f"--columns {name}={column}: {name!r} is no column of events; there are {_list(names)}"
            )
        if column not in available:
            raise TowerlineError(f"{file} has no column {column!r} for {name}; it has {_list(available)}")
    found = {name: wanted.get(name, name) for name in names if wanted.get(name, name) in available}
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        example = " ".join(f"{name}=YOUR_COLUMN" for name in missing)
        raise TowerlineError(
            f"{file} has no column {missing[0]!r}; it has {_list(available)}. Name yours: --columns {example}"
        )
    return found


def check_types(
    rows: pl.DataFrame, columns: Mapping[str, str], time_unit: TimeUnit | None, file: str, *, has_types: bool
) -> None:
    """Raise TowerlineError for the first column whose type cannot hold what it should.

    In a file that has no types (`has_types` false) everything is text, and what it says is a matter of each row.
    """
    for name, column in columns.items():
        kind = rows.schema[column]
        expected = _EXPECTED[name]
        if has_types and not expected.holds(kind):
            raise TowerlineError(f"{file}: column {column!r} ({name}) is {kind}, expected {expected.words}; convert it")
        if name in {EVENT_TIME, INGEST_TIME} and time_unit is None and needs_unit(rows.get_column(column)):
            raise TowerlineError(
                f"{file}: column {column!r} ({name}) holds numbers (the first is {rows.item(0, column)}), expected "
                "timestamps; say what the numbers count with --time-unit s, ms or us"
            )


def validate_events(
    rows: pl.DataFrame, lines: Sequence[int], columns: Mapping[str, str], rules: EventRules
) -> tuple[pl.DataFrame, list[Broken]]:
    """Good events and the rows that break the contract.

    Events have the columns of the contract (event_id only if the file has it), `source_row` = line of the file and
    `whole_row`. Repeated events are not looked for: see `find_repeated`.
    """
    values, faults = _parse(rows.schema, columns, rules)
    reasons = pl.coalesce(*[pl.when(bad).then(pl.lit(reason)) for reason, bad in faults], pl.lit(None, dtype=pl.String))
    values |= {WHOLE_ROW: _hash_of_row(rows), REASON: reasons}
    parsed = rows.select(**values).with_columns(pl.Series(SOURCE_ROW, lines, dtype=pl.Int64))
    bad = parsed.get_column(REASON).is_not_null()
    found = zip(parsed.filter(bad).get_column(SOURCE_ROW), parsed.filter(bad).get_column(REASON), strict=True)
    raw = rows_as_json(rows.filter(bad))
    broken = [Broken(line, reason, row) for (line, reason), row in zip(found, raw, strict=True)]
    return parsed.filter(~bad).drop(REASON), broken


def find_repeated(events: pl.DataFrame) -> pl.DataFrame:
    """The lines (`source_row`) and `reason` of events that were there before.

    With event ids, an event is repeated if its id is; without, if the whole row is. Two rows that only agree on who
    did what and when, but differ in some other column, are two events.
    """
    by_id = EVENT_ID in events.columns
    same = [EVENT_ID] if by_id else [USER_ID, ITEM_ID, EVENT_TYPE, VALUE, EVENT_TIME, WHOLE_ROW]
    reason = REPEATED_ID if by_id else REPEATED_ROW
    repeated = pl.int_range(pl.len()).over(same) > 0
    return events.sort(SOURCE_ROW).filter(repeated).select(SOURCE_ROW, pl.lit(reason).alias(REASON))


def rows_as_json(rows: pl.DataFrame) -> list[str]:
    """Each row as a JSON object; what JSON does not know is written as text."""
    return [json.dumps(_finite(row), ensure_ascii=False, default=str) for row in rows.iter_rows(named=True)]


def quarantine_table(table: str, file: str, broken: Sequence[Broken]) -> pl.DataFrame:
    """Broken rows of one table (events, items or users), read from `file`, in the contract of the quarantine."""
    fields = {name: [getattr(row, name) for row in broken] for name in Broken._fields}
    data = {"table": [table] * len(broken), "file": [file] * len(broken), **fields}
    return pl.DataFrame(data, schema=polars_schema(QUARANTINE))


def polars_schema(schema: pa.Schema) -> pl.Schema:
    """A contract's types, as polars names them."""
    return pl.DataFrame(schema.empty_table()).schema


def parse_id(name: str, column: str, kind: pl.DataType) -> tuple[pl.Expr, Faults]:
    """An id as text, exactly, and what can be wrong with it. Whole numbers have no ".0"."""
    value = pl.col(column)
    missing: Faults = [(f"{name} is missing", value.is_null())]
    if isinstance(kind, pl.String):
        return value, [*missing, (f"{name} is empty", value == ""), (f"{name} is NaN", value.is_in(["nan", "NaN"]))]
    if not kind.is_float():
        return value.cast(pl.String), missing
    whole = value.cast(pl.Int64, strict=False)
    text = pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    inexact = f"{name} is a floating-point number too large to be exact"
    return text, [
        *missing,
        (f"{name} is NaN", value.is_nan()),
        (inexact, value.is_infinite() | (value.abs() >= LARGEST_EXACT_FLOAT)),
    ]


def holds_ids(kind: pl.DataType) -> bool:
    """Whether a column of this type can be read as ids."""
    return kind.is_numeric() or isinstance(kind, pl.String | pl.Null)


@dataclass(frozen=True)
class _Expected:
    holds: Callable[[pl.DataType], bool]
    words: str


_ID = _Expected(holds_ids, "text or a whole number")
_NUMBER = _Expected(lambda kind: kind.is_numeric() or isinstance(kind, pl.Null), "a number")
_MOMENT = _Expected(lambda kind: can_hold_moments(kind) or isinstance(kind, pl.Null), "timestamp[us, UTC]")
_EXPECTED = {
    **dict.fromkeys((USER_ID, ITEM_ID, EVENT_ID, EVENT_TYPE, DECISION_ID), _ID),
    **dict.fromkeys((EVENT_TIME, INGEST_TIME), _MOMENT),
    VALUE: _NUMBER,
}


def _parse(schema: pl.Schema, columns: Mapping[str, str], rules: EventRules) -> tuple[dict[str, pl.Expr], Faults]:
    values: dict[str, pl.Expr] = {}
    faults: Faults = []
    for name in (name for name in (USER_ID, ITEM_ID, EVENT_TYPE, EVENT_ID) if name in columns):
        values[name], found = parse_id(name, columns[name], schema[columns[name]])
        faults += found
    for name in (name for name in (EVENT_TIME, INGEST_TIME) if name in columns):
        values[name], found = _parse_moment(name, columns[name], schema[columns[name]], rules)
        faults += found
    if VALUE in columns:
        values[VALUE], found = _parse_value(columns[VALUE], schema[columns[VALUE]])
        faults += found
    if DECISION_ID in columns:
        text, _ = parse_id(DECISION_ID, columns[DECISION_ID], schema[columns[DECISION_ID]])
        values[DECISION_ID] = pl.when(text != "").then(text)
    values.setdefault(EVENT_TYPE, pl.lit(rules.event_type))
    values.setdefault(VALUE, pl.lit(DEFAULT_VALUE, dtype=pl.Float32))
    values.setdefault(INGEST_TIME, values[EVENT_TIME])
    values.setdefault(DECISION_ID, pl.lit(None, dtype=pl.String))
    return values, faults


def _parse_moment(name: str, column: str, kind: pl.DataType, rules: EventRules) -> tuple[pl.Expr, Faults]:
    moment = moment_us(column, kind, rules.time_unit)
    form = "a number" if rules.time_unit and isinstance(kind, pl.String) else "a time in the years 1 to 9999"
    faults: Faults = [
        (f"{name} is missing", _is_missing(column, kind)),
        (f"{name} is not {form}", moment.is_null()),
        (f"{name} is in the future", moment > pl.lit(rules.now).dt.epoch("us")),
    ]
    return moment.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"), faults


def _parse_value(column: str, kind: pl.DataType) -> tuple[pl.Expr, Faults]:
    text = pl.col(column).str.strip_chars() if isinstance(kind, pl.String) else pl.col(column)
    number = text.cast(pl.Float64, strict=False)
    faults: Faults = [
        ("value is missing", _is_missing(column, kind)),
        ("value is not a number", number.is_null()),
        ("value is NaN", number.is_nan()),
        ("value is too large", number.abs() > LARGEST_FLOAT32),
    ]
    return number.cast(pl.Float32), faults


def _is_missing(column: str, kind: pl.DataType) -> pl.Expr:
    is_null = pl.col(column).is_null()
    return is_null | (pl.col(column).str.strip_chars() == "") if isinstance(kind, pl.String) else is_null


def _hash_of_row(rows: pl.DataFrame) -> pl.Expr:
    flat = sorted(name for name, kind in rows.schema.items() if not kind.is_nested() and kind != pl.Object)
    return pl.struct(flat).hash(seed=0)


def _finite(row: dict[str, object]) -> dict[str, object]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no columns"
