"""Counts and sums by window as integers, and how they become features: where batch and online meet.

A *cell* holds, for one window and one input, the number of events or the sum of a column in fixed point: value x 2**16
as int64. Integer addition is exact in any order, so a batch computation over all events, tiles that were added up
online and events that arrived late all give the same cell, and the same feature to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data.aggregations import HOUR, Count, Mean, Rate, Sum, Window
from data.views import FeatureView

FIXED_POINT = 2**16
LARGEST_VALUE = 1e9
"""Beyond this, about 140,000 values in one window could overflow a cell."""

Integers = npt.NDArray[np.int64]
Cells = Integers
"""(rows, windows x inputs), window by window."""


@dataclass(frozen=True)
class Input:
    """What an event adds to the cells of its windows: 1, 1 if a column has a value, or the column in fixed point.

    Null and NaN are no values.
    """

    column: str | None = None
    is_sum: bool = False

    def of(self, events: pl.DataFrame) -> npt.NDArray[np.int64]:
        """What each event adds (int64)."""
        if self.is_one(events):
            return np.ones(events.height, dtype=np.int64)
        assert self.column is not None
        column = events.get_column(self.column)
        if not self.is_sum:
            is_there = column.is_not_nan().fill_null(value=False) if column.dtype.is_float() else column.is_not_null()
            return is_there.to_numpy().astype(np.int64)
        values = column.cast(pl.Float64).fill_null(0.0) if column.null_count() else column
        return to_fixed_point(values.to_numpy().astype(np.float64))

    def is_one(self, events: pl.DataFrame) -> bool:
        """Whether each event adds 1, because it counts all or none lacks a value."""
        if self.is_sum or self.column is None:
            return self.column is None
        column = events.get_column(self.column)
        return not column.null_count() and not (column.dtype.is_float() and column.is_nan().any())


def to_fixed_point(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Values in steps of 2**-16, as integers; what is not finite or beyond ±1e9 is cut to it."""
    finite = np.nan_to_num(values, nan=0.0, posinf=LARGEST_VALUE, neginf=-LARGEST_VALUE)
    return np.rint(np.clip(finite, -LARGEST_VALUE, LARGEST_VALUE) * FIXED_POINT).astype(np.int64)


def decayed_weights(events: pl.DataFrame, column: str | None) -> npt.NDArray[np.float64]:
    """What each event adds to a recency-weighted sum before it is forgotten: 1, or its value as in a cell."""
    if column is None:
        return np.ones(events.height)
    return Input(column, is_sum=True).of(events) / FIXED_POINT


@dataclass(frozen=True)
class Ratio:
    """feature = cells[above] * scale / cells[below], or its default where `below` is 0; a `below` of None is 1."""

    feature: str
    above: int
    below: int | None
    scale: float
    default: float

    def finish(self, cells: Sequence[Integers]) -> npt.NDArray[Any]:
        """The feature of many rows of cells, given column by column: int64 for a plain count, else float64."""
        above = cells[self.above]
        if self.below is None:
            return above if self.scale == 1.0 else above * self.scale
        below = cells[self.below]
        finished = above * self.scale / np.maximum(below, 1)
        return np.where(below > 0, finished, self.default) if self.default else finished


@dataclass(frozen=True)
class CellPlan:
    """The windows and inputs that a view's counts, sums, means and rates need."""

    view: FeatureView

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Finite windows by length, all time last."""
        wanted = {each.window for each in self._aggregations.values()}
        return tuple(sorted(wanted, key=lambda window: (window.length is None, window.length or 0)))

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What an event adds."""
        wanted = dict.fromkeys(
            each for name in self._aggregations for each in (self._above(name), self._below(name)) if each is not None
        )
        return tuple(wanted)

    def index(self, window: Window, each: Input) -> int:
        """Column of a cell."""
        return self.windows.index(window) * len(self.inputs) + self.inputs.index(each)

    @cached_property
    def ratios(self) -> tuple[Ratio, ...]:
        """How each feature follows from the cells."""
        return tuple(self._ratio(name) for name in self._aggregations)

    @cached_property
    def _aggregations(self) -> Mapping[str, Count | Sum | Mean | Rate]:
        return {name: each for name, each in self.view.features.items() if isinstance(each, Count | Sum | Mean | Rate)}

    def _above(self, feature: str) -> Input:
        aggregation = self._aggregations[feature]
        return Input(aggregation.of, is_sum=True) if isinstance(aggregation, Sum | Mean) else Input()

    def _below(self, feature: str) -> Input | None:
        aggregation = self._aggregations[feature]
        if not isinstance(aggregation, Mean):
            return None
        return Input(aggregation.of)

    def _ratio(self, feature: str) -> Ratio:
        aggregation = self._aggregations[feature]
        below = self._below(feature)
        scale = 1.0
        if isinstance(aggregation, Sum | Mean):
            scale = 1.0 / FIXED_POINT
        elif isinstance(aggregation, Rate) and aggregation.window.length is not None:
            scale = HOUR / aggregation.window.length
        return Ratio(
            feature,
            self.index(aggregation.window, self._above(feature)),
            None if below is None else self.index(aggregation.window, below),
            scale,
            aggregation.default,
        )
