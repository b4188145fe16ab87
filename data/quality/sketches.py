"""Summaries of a column that can be added up: the sum says exactly what one pass over all rows would have said.

None of them depends on how the rows are cut into chunks or in which order the chunks are added. All are a few kB.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import polars as pl

EXACT_VALUES = 2048
"""Distinct values that are counted one by one; of more, a sample of this many rows is kept."""
LEAST_SAMPLED = 5
"""A value that is less often in the sample is not named: its share would be a guess."""
SKETCH_SIZE = 4096
"""Hashes kept to estimate how many distinct values there are: up to as many the count is exact, beyond about 1.6 % off
(one standard deviation)."""
MAX_BINS = 256
LEAST_LEVEL = -1022
"""Of bins: no power of two below it is a normal number."""

_HASHES = 2.0**64


@dataclass(frozen=True)
class Distinct:
    """How many distinct values: the smallest hashes of all values (k minimum values, Bar-Yossef et al., 2002).

    The hash is that of polars, which is stable within one version of it: sketches of one job can be added.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    @classmethod
    def of(cls, values: pl.Series) -> "Distinct":
        """Of the values of a column without nulls."""
        return cls(values.hash(seed=0).unique().bottom_k(SKETCH_SIZE).sort().to_numpy())

    def __add__(self, other: "Distinct") -> "Distinct":
        return Distinct(np.unique(np.concatenate([self.hashes, other.hashes]))[:SKETCH_SIZE])

    @property
    def is_exact(self) -> bool:
        """Whether `count` is no estimate."""
        return len(self.hashes) < SKETCH_SIZE

    @property
    def count(self) -> int:
        """Distinct values."""
        if self.is_exact:
            return len(self.hashes)
        return round((SKETCH_SIZE - 1) / (float(self.hashes[-1]) / _HASHES))


@dataclass(frozen=True)
class Values:
    """How often each value occurs: exactly while there are few, else in a uniform sample of the rows.

    The sample is that of the rows with the smallest hashes, so it is the same whoever draws it.
    """

    counts: dict[str, int] | None = field(default_factory=dict)
    """None when there are more than `EXACT_VALUES`."""
    sample: dict[int, str] = field(default_factory=dict)
    """Hash of a row → value."""

    @classmethod
    def of(cls, values: pl.Series, rows: pl.Series) -> "Values":
        """Of texts without nulls; `rows`: what tells their rows apart."""
        few = values.n_unique() <= EXACT_VALUES
        counts = dict(values.value_counts(name="n").iter_rows()) if few else None
        drawn = pl.DataFrame({"row": rows.hash(seed=1) ^ values.hash(seed=2), "value": values})
        return cls(counts, _lowest(dict(drawn.bottom_k(EXACT_VALUES, by="row").iter_rows())))

    def __add__(self, other: "Values") -> "Values":
        counts = None
        if self.counts is not None and other.counts is not None:
            counts = dict(self.counts)
            for value, count in other.counts.items():
                counts[value] = counts.get(value, 0) + count
            counts = counts if len(counts) <= EXACT_VALUES else None
        return Values(counts, _lowest(self.sample | other.sample))

    @property
    def is_exact(self) -> bool:
        """Whether `shares` are no estimates."""
        return self.counts is not None

    def most_common(self, limit: int, total: int) -> list[tuple[str, int]]:
        """The values that occur most often, with how often, of `total`; ties by their text."""
        if self.counts is not None:
            counts = self.counts
        else:
            counts = {}
            for value in self.sample.values():
                counts[value] = counts.get(value, 0) + 1
            often = {value: count for value, count in counts.items() if count >= LEAST_SAMPLED}
            counts = {value: round(count * total / len(self.sample)) for value, count in often.items()}
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


def _lowest(sample: dict[int, str]) -> dict[int, str]:
    return dict(sorted(sample.items())[:EXACT_VALUES])


@dataclass(frozen=True)
class Bins:
    """Counts in bins of one width, a power of two that is as small as `MAX_BINS` of them allow.

    Bins of twice the width are pairs of bins, so any two can be brought to one width and added exactly; and as the
    width follows from the lowest and the highest value alone, it is the same in whichever order they are added.
    """

    low: float = math.inf
    high: float = -math.inf
    level: int = 0
    """Bins are 2**level wide; bin i holds i * 2**level <= x < (i + 1) * 2**level."""
    counts: tuple[int, ...] = ()
    """From the bin of `low` to that of `high`."""
    least_level: int = LEAST_LEVEL

    @classmethod
    def of(cls, values: np.ndarray, least_level: int = LEAST_LEVEL) -> "Bins":
        """Of finite numbers; bins are not narrower than 2**least_level."""
        if not len(values):
            return cls(least_level=least_level)
        low, high = float(values.min()), float(values.max())
        level = _level(low, high, least_level)
        index = np.floor(np.ldexp(values, -level)).astype(np.int64)
        index[(values < 0) & (index == 0)] = -1  # so small that the division gave -0.0
        counts = np.bincount(index - index.min())
        return cls(low, high, level, tuple(counts.tolist()), least_level)

    def __add__(self, other: "Bins") -> "Bins":
        if not (self.counts and other.counts):
            return self if self.counts else other
        low, high = min(self.low, other.low), max(self.high, other.high)
        level = _level(low, high, self.least_level)
        first = _bin(low, level)
        total = np.zeros(_bin(high, level) - first + 1, dtype=np.int64)
        for part in (self, other):
            np.add.at(total, (part.first + np.arange(len(part.counts)) >> level - part.level) - first, part.counts)
        return Bins(low, high, level, tuple(total.tolist()), self.least_level)

    @property
    def first(self) -> int:
        """Number of the first bin."""
        return _bin(self.low, self.level) if self.counts else 0


def _bin(value: float, level: int) -> int:
    return min(math.floor(math.ldexp(value, -level)), -1 if value < 0 else math.inf)  # type: ignore[return-value]


def _level(low: float, high: float, least: int) -> int:
    """The least level at which there are not too many bins, and their numbers are small enough to be exact."""
    level = max(least, math.frexp(max(abs(low), abs(high)))[1] - 40)
    half_span = high / 2 - low / 2
    if half_span > 0:
        level = max(level, math.frexp(half_span)[1] - int(math.log2(MAX_BINS)) - 1)
    while _bin(high, level) - _bin(low, level) >= MAX_BINS:
        level += 1
    return level


def exact_sum(values: np.ndarray) -> Fraction:
    """The sum of finite numbers without any rounding, so that the order does not matter (a superaccumulator)."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = int(exponents.min(initial=0))
    slots = exponents - lowest
    total = Fraction(0)
    for part, shift in ((whole >> 27, 27), (whole & (2**27 - 1), 0)):  # each sum of 2**26 of them is exact
        sums = np.bincount(slots, weights=part.astype(np.float64))
        for slot in np.flatnonzero(sums):
            total += int(sums[slot]) * Fraction(2) ** (int(slot) + lowest - 53 + shift)
    return total
