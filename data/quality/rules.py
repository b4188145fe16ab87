"""What can be expected of each row by itself, one model per kind of rule. A null breaks only `Present`.

See `data.quality.table_rules` for the rest, `data.expectations` for how all of them are declared and checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from cluster.errors import TowerlineError
from data.moments import moment_us

Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["text", "integer", "number", "time", "boolean"]

_CASTS: dict[Kind, pl.DataType] = {
    "text": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "time": pl.Datetime("us", "UTC"),
}
MISSING = "missing"


@dataclass(frozen=True)
class Context:
    """What rules compare with that is not in the row."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    known: Mapping[str, pl.Series] = field(default_factory=dict)
    """`items.item_id` → all ids there are, for `References`."""


class Rule(BaseModel):
    """Something that a table is expected to keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def name(self) -> str:
        """Which rule this is, and what it wants, for reports and the quarantine."""
        raise NotImplementedError


class RowRule(Rule):
    """A rule for each row by itself."""

    column: str
    """A column of the contract or, if the contract has none of that name, of the source."""

    max_broken_share: Share = 1.0
    """More broken rows than this share of all stop the job."""

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        """Where it is broken, as booleans; null where there is nothing to compare."""
        raise NotImplementedError


class Type(RowRule):
    """The values are of a type, or text that can be read as one."""

    expect: Literal["type"] = "type"
    type: Kind

    @property
    def name(self) -> str:
        return f"{self.column} is {self.type}"

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        is_given = value != "" if isinstance(kind, pl.String) else value.is_not_null()
        return is_given & ~self._holds(value, kind)

    def _holds(self, value: pl.Expr, kind: pl.DataType) -> pl.Expr:
        is_text = isinstance(kind, pl.String)
        if self.type == "text":
            return pl.lit(is_text)
        if self.type == "boolean":
            return value.str.to_lowercase().is_in(["true", "false"]) if is_text else pl.lit(kind == pl.Boolean)
        if self.type == "time":
            return moment_us(self.column, kind, None).is_not_null() if is_text else pl.lit(kind.is_temporal())
        if not (is_text or kind.is_numeric()):
            return pl.lit(value=False)
        stripped = value.str.strip_chars() if is_text else value
        if self.type == "number" or not kind.is_float():
            return stripped.cast(_CASTS[self.type], strict=False).is_not_null()
        return value.floor() == value


class Present(RowRule):
    """Every row has a value: no null, no empty text, no NaN."""

    expect: Literal["present"] = "present"

    @property
    def name(self) -> str:
        return f"{self.column} present"

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        if isinstance(kind, pl.String):
            return value.is_null() | (value == "")
        return value.is_null() | value.is_nan() if kind.is_float() else value.is_null()


class Range(RowRule):
    """Numbers or times between two limits, both included. Text of a source is read as numbers or times first."""

    expect: Literal["range"] = "range"
    min: FiniteFloat | datetime | None = None
    max: FiniteFloat | datetime | Literal["now"] | None = None
    """`now` is the time when the job began."""

    @property
    def name(self) -> str:
        if self.min is None:
            return f"{self.column} at most {_shown(self.max)}"
        return f"{self.column} " + (
            f"at least {_shown(self.min)}" if self.max is None else f"in {_shown(self.min)}..{_shown(self.max)}"
        )

    @model_validator(mode="after")
    def _limits_fit(self) -> "Range":
        low, high = self.min, self.max
        if low is None and high is None:
            raise ValueError("has neither min nor max; give at least one")
        if low is not None and high is not None and isinstance(low, datetime) != (not isinstance(high, float)):
            raise ValueError(f"min {low} and max {high} are not of one kind")
        if not isinstance(high, str) and low is not None and high is not None and low > high:  # type: ignore[operator]
            raise ValueError(f"min {low} is over max {high}")
        for limit in (low, high):
            if isinstance(limit, datetime) and limit.tzinfo is None:
                raise ValueError(f"{limit} has no time zone; write {limit.isoformat()}Z for UTC")
        return self

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        high = context.now if self.max == "now" else self.max
        are_times = isinstance(self.min, datetime) or isinstance(high, datetime)
        if isinstance(kind, pl.String):
            number = value.str.strip_chars().cast(pl.Float64, strict=False)
            comparable = _as_time(self.column, kind) if are_times else number
            return (value != "") & ~self._is_inside(comparable, high).fill_null(value=False)
        if kind.is_temporal() != are_times:
            raise TowerlineError(
                f"expectation {self.name!r}: the column holds {kind}; give limits that are "
                f"{'times' if kind.is_temporal() else 'numbers'}"
            )
        return ~self._is_inside(value, high)

    def _is_inside(self, value: pl.Expr, high: float | datetime | str | None) -> pl.Expr:
        above = value >= self.min if self.min is not None else pl.lit(value=True)
        return above & (value <= high if high is not None else pl.lit(value=True))


class Length(RowRule):
    """Text of so many characters, or lists of so many values."""

    expect: Literal["length"] = "length"
    min: NonNegativeInt = 0
    max: NonNegativeInt

    @property
    def name(self) -> str:
        return f"{self.column} length in {self.min}..{self.max}"

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        length = value.list.len() if isinstance(kind, pl.List) else value.cast(pl.String).str.len_chars()
        return ~length.is_between(self.min, self.max)


class OneOf(RowRule):
    """One of a set of values."""

    expect: Literal["one_of"] = "one_of"
    values: tuple[str, ...] | tuple[FiniteFloat, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        return f"{self.column} one of {', '.join(_shown(value) for value in self.values)}"

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        texts = isinstance(self.values[0], str)
        wanted = pl.Series(self.values, dtype=pl.String if texts else kind if kind.is_float() else pl.Float64)
        return ~value.cast(wanted.dtype, strict=False).is_in(wanted.implode()).fill_null(value=False) & (
            value != "" if isinstance(kind, pl.String) else value.is_not_null()
        )


class References(RowRule):
    """Ids that another table has: `table = "items"`, `to = "item_id"`."""

    expect: Literal["references"] = "references"
    table: Literal["items", "users"]
    to: str
    """Column of that table."""

    @property
    def name(self) -> str:
        return f"{self.column} in {self.table}.{self.to}"

    def is_broken(self, value: pl.Expr, kind: pl.DataType, context: Context) -> pl.Expr:
        known = context.known.get(f"{self.table}.{self.to}")
        if known is None:
            raise TowerlineError(f"expectation {self.name!r}: there is no table {self.table}; pass --{self.table}")
        return ~value.cast(pl.String).is_in(known.cast(pl.String).implode())


def reason_of(rule: Rule, value: Any) -> str:
    """What the quarantine says of a row that breaks `rule`: `value in 0..5: 7.0`."""
    return f"{rule.name}: {_shown(value)}"


_PARSER_WORDS: tuple[tuple[str, type[RowRule]], ...] = (
    ("is missing", Present),
    ("is empty", Present),
    ("is NaN", Present),
    ("is not a", Type),
    ("is a floating-point number", Type),
    ("is in the future", Range),
    ("is too large", Range),
)
"""How parsing says that a row cannot be read as the contract wants it, and the rule that this is about."""


def without_value(reason: str, rules: Sequence[Rule]) -> str:
    """A reason as it can be counted: of those that name a rule and the value that broke it, the rule."""
    return next((rule.name for rule in rules if reason.startswith(f"{rule.name}: ")), reason)


def rule_of(reason: str, rules: Sequence[Rule]) -> str:
    """The name of the rule that a row of the quarantine broke; the start of the reason if it is none of `rules`."""
    declared = without_value(reason, rules)
    if declared != reason:
        return declared
    start = reason.partition(": ")[0]
    unique = start.replace("duplicate ", "unique ", 1)
    if any(rule.name == unique for rule in rules):
        return unique
    for words, kind in _PARSER_WORDS:
        column, found, _ = reason.partition(f" {words}")
        names = [rule.name for rule in rules if found and isinstance(rule, kind) and rule.column == column]
        if names:
            return names[0]
    return start


def _as_time(column: str, kind: pl.DataType) -> pl.Expr:
    return moment_us(column, kind, None).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _shown(value: object) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.10g}"
    return value.isoformat() if isinstance(value, datetime) else str(value)[:100]
