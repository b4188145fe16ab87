"""What can be expected of a table as a whole, one model per kind of rule.

`Unique` needs all rows that could be equal side by side; the others are concluded from statistics.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import BeforeValidator, Field, NonNegativeInt

from data.quality.rules import Length, OneOf, Present, Range, References, Rule, Share, Type
from data.quality.validation import REASON
from data.schema import SOURCE_ROW

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: object) -> object:
    """`"7d"`, `"36h"`, `"15m"` or `"30s"` as a time span; what is none of these is left to pydantic."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text) if isinstance(text, str) else None
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]]) if match else text


def _span(age: timedelta) -> str:
    """In the largest unit that it is a whole number of: `36 h`."""
    seconds = age.total_seconds()
    unit = next((unit for unit in ("d", "h", "m") if seconds % _SECONDS[unit] == 0), "s")
    return f"{seconds / _SECONDS[unit]:g} {unit}"


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
        return f"{self.column} not older than {_span(self.max_age)}"


class NullShare(Rule):
    """At most this share of the rows has no value."""

    expect: Literal["null_share"] = "null_share"
    column: str
    max_share: Share

    @property
    def name(self) -> str:
        return f"{self.column} null in at most {self.max_share * 100:.4g}% of rows"


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
