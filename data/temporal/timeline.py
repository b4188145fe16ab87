"""Moments of entities in one sorted order, and where in it any other moment belongs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]

_COMBINED_BITS = 62
"""An entity and a moment are packed into one integer of so many bits; what does not fit is cut from the moment."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Moments (entity, time in µs, source row), sorted by all three. Entities are codes 0 to `entities` - 1."""

    codes: Integers
    times: Integers
    rows: Integers
    entities: int

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def starts(self) -> Integers:
        """First position of each entity, and the number of moments at the end."""
        counts = np.bincount(self.codes, minlength=self.entities)
        return np.concatenate([[0], np.cumsum(counts)])

    def lower_bound(self, codes: Integers, times: Integers, rows: Integers | None = None) -> Integers:
        """The position of the first moment of the entity at or after (time, row), or the end of the entity.

        Without `rows`, at or after the time. Fast when what is asked for is itself sorted.
        """
        wanted = self._combine(codes, times)
        left = np.searchsorted(self._combined, wanted)
        if (rows is None and self._shift == 0) or not len(self):
            return left
        close = np.flatnonzero(self._combined[np.minimum(left, len(self) - 1)] == wanted)
        right = np.searchsorted(self._combined, wanted[close], side="right")
        left[close] = self._refined(left[close], right, times[close], None if rows is None else rows[close])
        return left

    def take(self, positions: Integers) -> "Timeline":
        """The moments at some sorted positions."""
        return Timeline(self.codes[positions], self.times[positions], self.rows[positions], self.entities)

    def equals(self, other: "Timeline") -> bool:
        """Whether both are the same moments."""
        return len(self) == len(other) and all(
            np.array_equal(one, two)
            for one, two in ((self.times, other.times), (self.rows, other.rows), (self.codes, other.codes))
        )

    def _refined(self, left: Integers, right: Integers, times: Integers, rows: Integers | None) -> Integers:
        """The lower bounds between positions `left` and `right`, by halving all the intervals at once."""
        open_ = np.flatnonzero(left < right)
        while len(open_):
            middle = (left[open_] + right[open_]) // 2
            time, wanted = self.times[middle], times[open_]
            is_before = time < wanted
            if rows is not None:
                is_before |= (time == wanted) & (self.rows[middle] < rows[open_])
            left[open_[is_before]] = middle[is_before] + 1
            right[open_[~is_before]] = middle[~is_before]
            open_ = open_[left[open_] < right[open_]]
        return left

    def _combine(self, codes: Integers, times: Integers) -> Integers:
        since: Integers = (times - self._origin) >> self._shift
        return codes * self._width + np.clip(since, 0, self._width - 1)

    @cached_property
    def _combined(self) -> Integers:
        return self._combine(self.codes, self.times)

    @cached_property
    def _origin(self) -> int:
        """A moment before all of these."""
        return int(self.times.min()) - (1 << self._shift) if len(self) else 0

    @cached_property
    def _shift(self) -> int:
        excess = max(self.entities, 1).bit_length() + self._span.bit_length() + 1 - _COMBINED_BITS
        return max(0, excess)

    @cached_property
    def _width(self) -> int:
        """Number of distinct cut moments, with one before and one after all of these."""
        return (self._span >> self._shift) + 4

    @cached_property
    def _span(self) -> int:
        return int(self.times.max()) - int(self.times.min()) if len(self) else 0


@dataclass(frozen=True, eq=False)
class Sorted:
    """A frame as a timeline, and the rows of the frame in that order (None if they are in it already)."""

    timeline: Timeline
    order: Integers | None

    def frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows in the order of the timeline."""
        return frame if self.order is None else frame[self.order]

    def restored(self, columns: pl.DataFrame) -> pl.DataFrame:
        """Rows in the order of the timeline, back in the order of the frame."""
        if self.order is None:
            return columns
        inverse = np.empty_like(self.order)
        inverse[self.order] = np.arange(len(self.order))
        return columns[inverse]


def sort_moments(codes: Integers, times: Integers, rows: Integers, entities: int) -> Sorted:
    """Sort moments; free of charge if they are sorted."""
    if _is_sorted(codes, times, rows):
        return Sorted(Timeline(codes, times, rows, entities), None)
    columns = pl.DataFrame({"code": codes, "time": times, "row": rows})
    order = columns.select(pl.arg_sort_by("code", "time", "row")).to_series().to_numpy().astype(np.int64)
    return Sorted(Timeline(codes[order], times[order], rows[order], entities), order)


def encode(*columns: pl.Series) -> tuple[list[Integers], int]:
    """Dense codes of the values, the same in all columns, by first appearance; and how many there are.

    A null is a value like others. Each run of equal values is looked up once.
    """
    runs = [column.rle_id().to_numpy().astype(np.int64) for column in columns]
    heads = [column.gather(np.flatnonzero(np.diff(run, prepend=-1))) for column, run in zip(columns, runs, strict=True)]
    encoded = pc.dictionary_encode(_chunked(heads), null_encoding="encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    of_heads = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    codes, first = [], 0
    for head, run in zip(heads, runs, strict=True):
        codes.append(of_heads[first : first + head.len()][run])
        first += head.len()
    return codes, len(encoded.dictionary)


def _chunked(columns: list[pl.Series]) -> pa.ChunkedArray:
    kind: Any = pa.large_string() if columns[0].dtype == pl.String else columns[0].to_arrow().type
    return pa.chunked_array([column.to_arrow().cast(kind) for column in columns], type=kind)


def _is_sorted(codes: Integers, times: Integers, rows: Integers) -> bool:
    for higher, lower in ((codes[:-1], codes[1:]),):
        if (higher > lower).any():
            return False
    same_code = codes[:-1] == codes[1:]
    if (same_code & (times[:-1] > times[1:])).any():
        return False
    return not (same_code & (times[:-1] == times[1:]) & (rows[:-1] > rows[1:])).any()
