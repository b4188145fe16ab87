"""Expectations of the three tables, declared: what the contract itself demands, and what a person adds in TOML.

How a job uses them:

1. `read_expectations(path)` before anything else: a mistake in the file, or a reference that is not there, stops it.
2. In a map over the parts of the source, after parsing: `expectations.events.check(rows, lines, raw, context)` gives
   the good rows and the broken ones. `Findings.of(...)` (data.quality.findings) keeps what the report needs of them.
3. Over each bucket by user: `Unique.repeated(bucket)` for each of `expectations.events.unique_rules`. Items and users
   are small and checked at once, with `check_whole`.
4. `conclude(...)` (data.quality.validation_report) over the sum of all findings; `raise_if_failed()` before anything is
   put in its place.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cluster.errors import TowerlineError
from data.quality.distribution import reference_column
from data.quality.rules import Context, Length, Present, Range, RowRule, Share, Type, reason_of
from data.quality.table_rules import AnyRule, Distribution, Fresh, NullShare, Unique
from data.quality.validation import REASON, rows_as_json
from data.schema import (
    ATTRIBUTES,
    DECISION_ID,
    EVENT_ID,
    EVENT_TIME,
    EVENT_TYPE,
    EVENTS,
    INGEST_TIME,
    ITEM_ID,
    ITEMS,
    TITLE,
    USER_ID,
    USERS,
    VALUE,
)
from data.sources.chunk import Broken

TableName = Literal["events", "items", "users"]
TABLES: tuple[TableName, ...] = ("events", "items", "users")
MAX_ID_LENGTH = 512
MAX_VALUE = 1e9
"""Sums are 64-bit integers in steps of 2**-16: a hundred thousand events of this value fit."""

_PLACE = "place of the row"
_EXAMPLE = "see jobs/configs/expectations.toml for an example"


@dataclass(frozen=True)
class Checked:
    """Rows after the row rules."""

    good: pl.DataFrame
    broken: list[Broken]


class Expectations(BaseModel):
    """What is expected of one table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[AnyRule, ...] = ()
    """In the order in which they are checked: a row goes to quarantine with the first that it breaks."""

    max_broken_share: Share = 0.5
    """More broken rows than this share of those read stop the job. Repeated deliveries of an event do not count."""

    @property
    def row_rules(self) -> tuple[RowRule, ...]:
        """Those that `check` looks at."""
        return tuple(rule for rule in self.rules if isinstance(rule, RowRule))

    @property
    def unique_rules(self) -> tuple[Unique, ...]:
        """Those that need rows side by side."""
        return tuple(rule for rule in self.rules if isinstance(rule, Unique))

    def check(
        self,
        rows: pl.DataFrame,
        lines: Sequence[int] | pl.Series,
        raw: pl.DataFrame | None = None,
        context: Context | None = None,
    ) -> Checked:
        """Good rows, and those that break a row rule with the first that they break (`value in 0..5: 7.0`).

        `rows`: parsed, in the contract's columns. `lines`: where each stood. `raw`: the same rows as the source had
        them; rules may name its columns, and the quarantine keeps its values. Pure, and vectorised but for the broken.
        Raises TowerlineError for a rule whose column is in neither.
        """
        as_read = rows if raw is None else raw
        extra = [] if raw is None else [name for name in raw.columns if name not in rows.columns]
        table = rows if raw is None or not extra else rows.hstack(raw.select(extra))
        found = [self._where_broken(number, table, context or Context()) for number in range(len(self.row_rules))]
        if not found or rows.is_empty():
            return Checked(rows, [])
        which = table.select(pl.coalesce(*found).alias("rule")).to_series()
        bad = which.is_not_null()
        if not bad.any():
            return Checked(rows, [])
        return Checked(rows.filter(~bad), self._broken(which, table, pl.Series(lines), as_read))

    def check_whole(
        self,
        rows: pl.DataFrame,
        lines: Sequence[int] | pl.Series,
        raw: pl.DataFrame | None = None,
        context: Context | None = None,
    ) -> Checked:
        """`check`, and what must be unique: for a table that is in memory as a whole, in its order."""
        at, as_read = pl.Series(lines, dtype=pl.Int64), rows if raw is None else raw
        checked = self.check(rows.with_row_index(_PLACE), at, as_read, context)
        good, broken = checked.good, checked.broken
        for rule in self.unique_rules:
            again = rule.repeated(good, _PLACE)
            places = again.get_column(_PLACE)
            found = zip(at.gather(places), again.get_column(REASON), rows_as_json(as_read[places]), strict=True)
            broken = broken + [Broken(*row) for row in found]
            good = good.join(again, on=_PLACE, how="anti", maintain_order="left")
        return Checked(good.drop(_PLACE), broken)

    def _where_broken(self, number: int, table: pl.DataFrame, context: Context) -> pl.Expr:
        """The number of a rule where it is the one that is broken."""
        rule = self.row_rules[number]
        if rule.column not in table.columns:
            raise TowerlineError(
                f"expectation {rule.name!r}: there is no column {rule.column!r}; there are {', '.join(table.columns)}"
            )
        broken = rule.is_broken(pl.col(rule.column), table.schema[rule.column], context)
        return pl.when(broken).then(pl.lit(number, dtype=pl.Int16))

    def _broken(self, which: pl.Series, table: pl.DataFrame, lines: pl.Series, as_read: pl.DataFrame) -> list[Broken]:
        bad = which.is_not_null()
        columns = [rule.column for rule in self.row_rules]
        values = table.filter(bad).select(set(columns)).to_dict(as_series=True)
        return [
            Broken(line, reason_of(self.row_rules[rule], values[columns[rule]][position]), row)
            for position, (rule, line, row) in enumerate(
                zip(which.filter(bad), lines.filter(bad), rows_as_json(as_read.filter(bad)), strict=True)
            )
        ]


def _identifier(column: str) -> tuple[Present, Length]:
    return Present(column=column), Length(column=column, min=1, max=MAX_ID_LENGTH)


EVENT_RULES: tuple[AnyRule, ...] = (
    *_identifier(USER_ID),
    *_identifier(ITEM_ID),
    Length(column=EVENT_TYPE, min=1, max=MAX_ID_LENGTH),
    Present(column=EVENT_TIME),
    Type(column=EVENT_TIME, type="time"),
    Range(column=EVENT_TIME, max="now"),
    Present(column=INGEST_TIME),
    Type(column=INGEST_TIME, type="time"),
    Range(column=INGEST_TIME, max="now"),
    Present(column=VALUE),
    Type(column=VALUE, type="number"),
    Range(column=VALUE, min=-MAX_VALUE, max=MAX_VALUE),
    Length(column=DECISION_ID, max=MAX_ID_LENGTH),
)
ITEM_RULES: tuple[AnyRule, ...] = (*_identifier(ITEM_ID), Unique(columns=(ITEM_ID,)))
USER_RULES: tuple[AnyRule, ...] = (*_identifier(USER_ID), Unique(columns=(USER_ID,)))

_CONTRACT = {"events": EVENT_RULES, "items": ITEM_RULES, "users": USER_RULES}
_COLUMNS = {"events": EVENTS.names, "items": ITEMS.names, "users": USERS.names}
_TIMES = (EVENT_TIME, INGEST_TIME)
_NUMBERS = (VALUE,)
_DESCRIBED = (EVENT_ID, USER_ID, ITEM_ID, EVENT_TYPE, VALUE, EVENT_TIME, INGEST_TIME, DECISION_ID, TITLE, ATTRIBUTES)
"""Columns that have statistics."""


def described_columns(table: pl.DataFrame) -> list[str]:
    """The columns of a table that have statistics."""
    return [name for name in table.columns if name in _DESCRIBED]


class DatasetExpectations(BaseModel):
    """What is expected of each table of a data set: first what the contract demands, then what is added to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: Expectations = Expectations(rules=EVENT_RULES)
    items: Expectations = Expectations(rules=ITEM_RULES)
    users: Expectations = Expectations(rules=USER_RULES)

    @model_validator(mode="after")
    def _rules_can_be_checked(self) -> "DatasetExpectations":
        for table in TABLES:
            for rule in getattr(self, table).rules:
                _require_checkable(table, rule)
        return self


def _require_checkable(table: TableName, rule: AnyRule) -> None:
    """Table rules read statistics, which the contract's columns have; buckets of events are by user."""
    if isinstance(rule, Unique):
        columns: Sequence[str] = rule.columns
    elif isinstance(rule, Fresh | NullShare | Distribution):
        columns = [rule.column]
    else:
        return
    available = [name for name in _COLUMNS[table] if name in _DESCRIBED]
    for column in columns:
        if column not in available:
            raise ValueError(f"{rule.name!r}: {table} have no column {column!r}; there are {', '.join(available)}")
    if isinstance(rule, Unique) and table == "events" and USER_ID not in rule.columns:
        raise ValueError(f"{rule.name!r}: events are compared user by user; add {USER_ID!r} to columns")
    if isinstance(rule, Fresh) and rule.column not in _TIMES:
        raise ValueError(f"{rule.name!r}: {rule.column} holds no times; use {' or '.join(_TIMES)}")
    if isinstance(rule, Distribution) and rule.column in _TIMES:
        raise ValueError(f"{rule.name!r}: times move on by nature; use Fresh")
    if isinstance(rule, Distribution) and rule.max_ks is not None and rule.column not in _NUMBERS:
        raise ValueError(f"{rule.name!r}: {rule.column} holds no numbers, which max_ks needs; use max_psi")


def read_expectations(path: Path | None = None) -> DatasetExpectations:
    """The contract's expectations and those of a TOML file on top of them.

    Raises TowerlineError, naming file, key and value, if it is not there, not TOML, or holds an unknown key or a value
    out of range.
    """
    if path is None:
        return DatasetExpectations()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TowerlineError(f"{path}: {error}; {_EXAMPLE}") from error
    try:
        added = DatasetExpectations.model_validate(values)
        tables = {table: _with_contract(table, getattr(added, table), path) for table in added.model_fields_set}
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "file"
        message = problem["msg"].removeprefix("Value error, ")
        raise TowerlineError(f"{path}: {key} = {problem['input']!r}: {message}; {_EXAMPLE}") from error
    return added.model_copy(update=tables)


def _with_contract(table: str, added: Expectations, path: Path) -> Expectations:
    rules = tuple(_located(table, rule, path.parent) for rule in added.rules)
    return added.model_copy(update={"rules": (*_CONTRACT[table], *rules)})


def _located(table: str, rule: AnyRule, folder: Path) -> AnyRule:
    """The rule with the whole path of its reference, which must be there and hold the column."""
    if not isinstance(rule, Distribution) or rule.reference == "previous":
        return rule
    path = folder / rule.reference
    reference_column(path, table, rule.column)
    return rule.model_copy(update={"reference": path})
