"""What can be expected of a table, one model per kind of rule. See `data.expectations` for how they are checked.

A row rule holds or breaks for each row by itself; a null breaks only `Present`. A table rule is concluded from
statistics. `Unique` needs all rows that could be equal side by side.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from cluster.errors import TowerlineError
from data.moments import moment_us
from data.schema import SOURCE_ROW
from data.validation import REASON

Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["text", "integer", "number", "time", "boolean"]

_CASTS: dict[Kind, pl.DataType] = {
    "text": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "time": pl.Datetime("us", "UTC"),
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MISSING = "missing"


@dataclass(frozen=True)
class Context:
    """What rules compare with that is not in the row."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    known: Mapping[str, pl.Series] = field(default_factory=dict)
    """`items.item_id` → all ids there are, for `References`."""


def duration(text: object) -> object:
    """`"7d"`, `"36h"`, `"15m"` or `"30s"` as a time span; what is none of these is left to pydantic."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text) if isinstance(text, str) else None
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]]) if match else text


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


class Unique(Rule):
    """No two rows agree in all of these columns; the first of them by the order of the source is kept."""

    expect: Literal["unique"] = "unique"
    columns: tuple[str, ...] = Field(min_length=1)
    max_broken_share: Share = 1.0
    """More broken rows than this share of all stop the job."""

    @property
    def name(self) -> str:
        return f"unique {', '.join(self.columns)}"

    def repeated(self, rows: pl.DataFrame, order: str = SOURCE_ROW) -> pl.DataFrame:
        """`order` and `reason` of the rows that agree with an earlier one.

        `rows` must hold all rows that can agree: a whole table, or a bucket by the hash of one of `columns`.
        """
        is_repeated = pl.int_range(pl.len()).over(self.columns) > 0
        value = pl.concat_str(pl.col(self.columns).cast(pl.String), separator=", ", ignore_nulls=True)
        reason = pl.concat_str(pl.lit(f"{self.name}: "), value.str.head(100))
        return rows.sort(order).filter(is_repeated).select(order, reason.alias(REASON))


class Fresh(Rule):
    """The newest time of the column is not older than `max_age` when the job begins."""

    expect: Literal["fresh"] = "fresh"
    column: str
    max_age: Annotated[timedelta, BeforeValidator(duration), Field(gt=timedelta(0))]
    """`"7d"`, `"36h"`, `"15m"` or `"30s"`."""

    @property
    def name(self) -> str:
        return f"{self.column} not older than {self.max_age}"


class NullShare(Rule):
    """At most this share of the rows has no value."""

    expect: Literal["null_share"] = "null_share"
    column: str
    max_share: Share

    @property
    def name(self) -> str:
        return f"{self.column} null in at most {self.max_share:.4g} of rows"


class RowCount(Rule):
    """So many good rows at least, and at most."""

    expect: Literal["row_count"] = "row_count"
    min: NonNegativeInt = 1
    max: NonNegativeInt | None = None

    @property
    def name(self) -> str:
        return f"at least {self.min:,} rows" + (f", at most {self.max:,}" if self.max is not None else "")


class Distribution(Rule):
    """The column is distributed as in an earlier report.

    Compared by the population stability index (0: the same; over 0.25 is commonly called a shift) and, for numbers, by
    the Kolmogorov-Smirnov distance (the largest difference of the two cumulated shares).
    """

    expect: Literal["distribution"] = "distribution"
    column: str
    reference: Path | Literal["previous"] = "previous"
    """A `validation.json`, from the folder of the file that says so; or `previous`: the version before this one."""
    max_psi: Annotated[float, Field(gt=0)] = 0.25
    max_ks: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def name(self) -> str:
        limit = f"PSI at most {self.max_psi:.4g}" + (f", KS at most {self.max_ks:.4g}" if self.max_ks else "")
        source = self.reference if self.reference == "previous" else Path(self.reference).name
        return f"{self.column} distributed as in {source} ({limit})"


AnyRule = Annotated[
    Type | Present | Range | Length | OneOf | References | Unique | Fresh | NullShare | RowCount | Distribution,
    Field(discriminator="expect"),
]


def reason_of(rule: Rule, value: Any) -> str:
    """What the quarantine says of a row that breaks `rule`: `value in 0..5: 7.0`."""
    return f"{rule.name}: {_shown(value)}"


def _as_time(column: str, kind: pl.DataType) -> pl.Expr:
    return moment_us(column, kind, None).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _shown(value: object) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.10g}"
    return value.isoformat() if isinstance(value, datetime) else str(value)[:100]
