import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.quality.sketches import EXACT_VALUES, MAX_BINS, SKETCH_SIZE, Bins, Distinct, Values, exact_sum

finite = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)


@settings(deadline=None)
@given(st.lists(finite, max_size=40))
def test_sums_are_exact(numbers: list[float]) -> None:
    assert exact_sum(np.array(numbers, dtype=float)) == sum(map(Fraction, numbers), Fraction(0))


def test_a_sum_that_floats_would_lose() -> None:
    assert exact_sum(np.array([1e300, 1.0, -1e300])) == 1
    assert exact_sum(np.array([0.1] * 1_000_000)) == Fraction(0.1) * 1_000_000


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=60), st.data())
def test_bins_do_not_depend_on_chunks(numbers: list[float], data: st.DataObject) -> None:
    whole = Bins.of(np.array(numbers))
    cut = data.draw(st.integers(0, len(numbers)))
    left, right = Bins.of(np.array(numbers[:cut])), Bins.of(np.array(numbers[cut:]))
    assert left + right == right + left == whole


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=60))
def test_every_number_is_in_its_bin(numbers: list[float]) -> None:
    bins = Bins.of(np.array(numbers))
    assert len(bins.counts) <= MAX_BINS
    width = Fraction(2) ** bins.level
    expected = [0] * len(bins.counts)
    for number in numbers:
        expected[math.floor(Fraction(number) / width) - bins.first] += 1
    assert list(bins.counts) == expected


def test_bins_are_as_narrow_as_there_may_be() -> None:
    assert len(Bins.of(np.arange(1000.0)).counts) > MAX_BINS // 2
    assert len(Bins.of(np.arange(1000.0), least_level=8).counts) == 4
    assert Bins.of(np.array([5.0] * 9)).counts == (9,)
    assert Bins.of(np.array([])).counts == ()
    assert Bins.of(np.array([])).first == 0


def test_distinct_values_are_exact_while_they_are_few_and_close_when_not() -> None:
    few = Distinct.of(pl.Series([str(number % 4000) for number in range(9000)]))
    assert (few.count, few.is_exact) == (4000, True)
    many = Distinct.of(pl.Series(range(300_000))) + Distinct.of(pl.Series(range(200_000, 500_000)))
    assert len(many.hashes) == SKETCH_SIZE
    assert not many.is_exact
    assert many.count == pytest.approx(500_000, rel=0.05)


def of(texts: list[str], start: int = 0) -> Values:
    return Values.of(pl.Series(texts, dtype=pl.String), pl.Series(range(start, start + len(texts)), dtype=pl.Int64))


def test_few_values_are_counted_one_by_one() -> None:
    values = of(["b", "a", "b", "c"]) + of(["c", "a"], 4)
    assert values.is_exact
    assert values.most_common(2, 6) == [("a", 2), ("b", 2)]


def test_of_many_values_the_frequent_ones_are_estimated() -> None:
    texts = ["often" if number % 5 == 0 else str(number) for number in range(40_000)]
    values = of(texts)
    assert not values.is_exact
    assert len(values.sample) == EXACT_VALUES
    [(value, count)] = values.most_common(9, 40_000)
    assert (value, count) == ("often", pytest.approx(8_000, rel=0.2))


@settings(deadline=None)
@given(st.integers(0, 6000), st.booleans())
def test_values_do_not_depend_on_chunks(cut: int, swap: bool) -> None:
    texts = [str(number % 3000) for number in range(6000)]
    left, right = of(texts[:cut]), of(texts[cut:], cut)
    assert (right + left if swap else left + right) == of(texts)
