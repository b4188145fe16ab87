"""What a table holds, column by column, in a few kB that can be added up.

`Statistics.of(a) + Statistics.of(b) == Statistics.of(a and b)`, exactly, however the rows are cut and in any order.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from data.quality.sketches import Bins, Distinct, Values, exact_sum
from data.schema import EVENT_TIME, ITEM_ID, SOURCE_ROW, USER_ID

FEW_NUMBERS = 64
"""Up to so many distinct numbers are counted one by one."""
TOP_VALUES = 50
"""Values of a text column that a report names."""

_IDENTITY = (SOURCE_ROW, EVENT_TIME, USER_ID, ITEM_ID)
_DAY_US = 86_400_000_000
_DAY_LEAST_LEVEL = -5
"""The narrowest bin of times is a thirty-second of a day: 45 minutes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ColumnKind = Literal["number", "time", "text", "list"]
Scale = Literal["linear", "log", "days"]


class Histogram(BaseModel):
    """Counts in neighbouring bins: bin i is [(first + i) * 2**level, (first + i + 1) * 2**level) on its scale.

    `linear`: of the numbers; `log`: of sign(x) * log2(1 + |x|); `days`: of the days since 1970 UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Scale
    level: int
    first: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, bins: Bins, scale: Scale) -> "Histogram":
        """The bins as they are reported."""
        return cls(scale=scale, level=bins.level, first=bins.first, counts=bins.counts)

    def edge(self, position: int) -> float:
        """The lower limit of a bin, or the upper limit of the one before, as a number or in days since 1970."""
        place = math.ldexp(self.first + position, self.level)
        return math.copysign(2 ** abs(place) - 1, place) if self.scale == "log" else place

    def at(self, level: int) -> "Histogram":
        """The same in bins of 2**level, which must not be narrower."""
        bins = self.first + np.arange(len(self.counts)) >> level - self.level
        counts = np.bincount(bins - bins[0], weights=self.counts).astype(np.int64)
        return self.model_copy(update={"level": level, "first": int(bins[0]), "counts": tuple(counts.tolist())})

    @property
    def entropy(self) -> float:
        """In bits: how much the histogram tells."""
        counts = np.array([count for count in self.counts if count], dtype=float)
        shares = counts / max(counts.sum(), 1)
        return float(-(shares * np.log2(shares)).sum())


class ValueCount(BaseModel):
    """How often a value occurs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | str
    count: int


class ColumnSummary(BaseModel):
    """A column as a report shows it, and as a later `Distribution` compares with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ColumnKind
    count: int
    """Rows."""
    nulls: int
    not_finite: int = 0
    """NaN and infinite numbers, which the other figures leave out."""
    distinct: int
    """Distinct values; of a list, distinct elements."""
    distinct_is_exact: bool
    min: float | datetime | None = None
    max: float | datetime | None = None
    mean: float | datetime | None = None
    std: float | None = None
    """Population standard deviation; of times, in seconds."""
    values: tuple[ValueCount, ...] = ()
    """Numbers: all of them in order if they are few. Text and lists: the most frequent first."""
    values_are_exact: bool = True
    """If not, counts are estimated from a uniform sample of 2048 values."""
    histograms: tuple[Histogram, ...] = ()
    """Of numbers a linear and a logarithmic one, of times by days, of text and lists the lengths."""

    @property
    def histogram(self) -> Histogram | None:
        """The one that tells most."""
        return max(self.histograms, key=lambda histogram: histogram.entropy, default=None)


@dataclass(frozen=True)
class Numbers:
    """Of a column of numbers, or of times in µs since 1970."""

    count: int
    not_finite: int
    low: float
    high: float
    total: Fraction
    squares: Fraction
    """Sum of the squares, each rounded to a double."""
    values: dict[float, int] | None
    """None if there are more than `FEW_NUMBERS`."""
    bins: tuple[Bins, ...]

    @classmethod
    def of(cls, values: np.ndarray, *, are_times: bool) -> "Numbers":
        """Of an array without nulls."""
        finite = values[np.isfinite(values)] + 0.0
        distinct, counts = np.unique(finite, return_counts=True)
        few = dict(zip(distinct.tolist(), counts.tolist(), strict=True)) if len(distinct) <= FEW_NUMBERS else None
        with np.errstate(over="ignore"):
            squares = np.minimum(finite * finite, np.finfo(float).max)
        signed_log = np.copysign(np.log2(1 + np.abs(finite)), finite)
        return cls(
            count=len(finite),
            not_finite=len(values) - len(finite),
            low=float(finite.min(initial=math.inf)),
            high=float(finite.max(initial=-math.inf)),
            total=exact_sum(finite),
            squares=exact_sum(squares),
            values=few,
            bins=(Bins.of(finite / _DAY_US, _DAY_LEAST_LEVEL),)
            if are_times
            else (Bins.of(finite), Bins.of(signed_log, least_level=-10)),
        )

    def __add__(self, other: "Numbers") -> "Numbers":
        values = None
        if self.values is not None and other.values is not None:
            values = {
                value: self.values.get(value, 0) + other.values.get(value, 0)
                for value in sorted(self.values.keys() | other.values.keys())
            }
            values = values if len(values) <= FEW_NUMBERS else None
        return Numbers(
            count=self.count + other.count,
            not_finite=self.not_finite + other.not_finite,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            total=self.total + other.total,
            squares=self.squares + other.squares,
            values=values,
            bins=tuple(mine + theirs for mine, theirs in zip(self.bins, other.bins, strict=True)),
        )

    @property
    def mean(self) -> float:
        """Rounded once."""
        return float(self.total / self.count)

    @property
    def std(self) -> float:
        """Population standard deviation."""
        mean = self.total / self.count
        return math.sqrt(max(self.squares / self.count - mean * mean, Fraction(0)))


@dataclass(frozen=True)
class ColumnStatistics:
    """Of one column."""

    kind: ColumnKind
    count: int
    nulls: int
    distinct: Distinct
    numbers: Numbers | None = None
    values: Values | None = None
    lengths: Bins = field(default_factory=Bins)

    @classmethod
    def of(cls, column: pl.Series, rows: pl.Series) -> "ColumnStatistics":
        """`rows`: what tells the rows apart."""
        is_given = column.is_not_null()
        given, kind = column.filter(is_given), kind_of(column.dtype)
        nulls = len(column) - len(given)
        if kind in {"number", "time"}:
            numbers = given.cast(pl.Datetime("us")).to_physical() if kind == "time" else given
            array = numbers.cast(pl.Float64).to_numpy()
            return cls(kind, len(column), nulls, Distinct.of(given), Numbers.of(array, are_times=kind == "time"))
        lengths = given.list.len() if kind == "list" else given.cast(pl.String).str.len_chars()
        values = pl.DataFrame({"value": given, "row": rows.filter(is_given)})
        if kind == "list":
            values = values.explode("value").drop_nulls()
        texts = values.get_column("value").cast(pl.String)
        counted = Values.of(texts, values.get_column("row"))
        bins = Bins.of(lengths.cast(pl.Float64).to_numpy(), least_level=0)
        return cls(kind, len(column), nulls, Distinct.of(texts), None, counted, bins)

    def __add__(self, other: "ColumnStatistics") -> "ColumnStatistics":
        return ColumnStatistics(
            self.kind,
            self.count + other.count,
            self.nulls + other.nulls,
            self.distinct + other.distinct,
            self.numbers + other.numbers if self.numbers and other.numbers else None,
            self.values + other.values if self.values and other.values else None,
            self.lengths + other.lengths,
        )

    def summary(self) -> ColumnSummary:
        """As a report shows it."""
        about = ColumnSummary(
            kind=self.kind,
            count=self.count,
            nulls=self.nulls,
            distinct=self.distinct.count,
            distinct_is_exact=self.distinct.is_exact,
        )
        if self.numbers:
            return about.model_copy(update=_numbers_summary(self.numbers, are_times=self.kind == "time"))
        if not self.values:
            return about
        top = self.values.most_common(TOP_VALUES, self.count - self.nulls)
        return about.model_copy(
            update={
                "values": tuple(ValueCount(value=value, count=count) for value, count in top),
                "values_are_exact": self.values.is_exact,
                "histograms": (Histogram.of(self.lengths, "linear"),) if self.lengths.counts else (),
            }
        )


def _numbers_summary(numbers: Numbers, *, are_times: bool) -> dict[str, Any]:
    if not numbers.count:
        return {"not_finite": numbers.not_finite}
    figures = {"min": numbers.low, "max": numbers.high, "mean": numbers.mean}
    scales: tuple[Scale, ...] = ("days",) if are_times else ("linear", "log")
    return {
        **{name: _EPOCH + timedelta(microseconds=value) if are_times else value for name, value in figures.items()},
        "not_finite": numbers.not_finite,
        "std": numbers.std / 1e6 if are_times else numbers.std,
        "values": ()
        if are_times or numbers.values is None
        else tuple(ValueCount(value=value, count=count) for value, count in numbers.values.items()),
        "histograms": tuple(Histogram.of(bins, scale) for bins, scale in zip(numbers.bins, scales, strict=True)),
    }


@dataclass(frozen=True)
class Statistics:
    """Of a table. `Statistics()` is of no rows and adds nothing to any other."""

    rows: int = 0
    columns: dict[str, ColumnStatistics] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pl.DataFrame, columns: Sequence[str]) -> "Statistics":
        """Of some columns of a table. Rows are told apart by where they stood, when, who and what (those there are).

        Shares that are estimated are too low for values of rows that agree in all of these.
        """
        if table.is_empty():
            return cls()
        present = [name for name in _IDENTITY if name in table.columns] or table.columns
        rows = table.select(
            pl.reduce(operator.xor, [pl.col(name).hash(seed) for seed, name in enumerate(present)])
        ).to_series()
        return cls(table.height, {name: ColumnStatistics.of(table.get_column(name), rows) for name in columns})

    def __add__(self, other: "Statistics") -> "Statistics":
        if not (self.columns and other.columns):
            return self if self.columns else other
        return Statistics(
            self.rows + other.rows,
            {name: column + other.columns[name] for name, column in self.columns.items()},
        )

    def summary(self) -> dict[str, ColumnSummary]:
        """By column, as a report shows it."""
        return {name: column.summary() for name, column in self.columns.items()}


def kind_of(kind: pl.DataType) -> ColumnKind:
    """How a column of this type is summed up."""
    if isinstance(kind, pl.List):
        return "list"
    if isinstance(kind, pl.Datetime):
        return "time"
    return "number" if kind.is_numeric() else "text"
