import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.quality.distribution import (
    MOST_BINS,
    aligned,
    kolmogorov_smirnov,
    population_stability_index,
    reference_column,
)
from data.quality.statistics import ColumnSummary, Histogram, Statistics


def summary(values: object) -> ColumnSummary:
    return Statistics.of(pl.DataFrame({"x": values}), ["x"]).summary()["x"]


def normal(mean: float, std: float, seed: int = 0, count: int = 20_000) -> ColumnSummary:
    return summary(np.random.default_rng(seed).normal(mean, std, count))


def test_the_same_distribution_is_close_and_a_shifted_one_is_not() -> None:
    before = normal(100, 10)
    assert population_stability_index(before, before) == 0
    assert population_stability_index(before, normal(100, 10, seed=1)) < 0.01
    assert 0.15 < population_stability_index(before, normal(105, 10, seed=1)) < 0.35
    assert population_stability_index(before, normal(160, 10, seed=1)) > 3
    assert kolmogorov_smirnov(before, normal(100, 10, seed=1)) < 0.02
    assert kolmogorov_smirnov(before, normal(110, 10, seed=1)) == pytest.approx(0.383, abs=0.02)


def test_heavy_tails_are_compared_on_a_logarithmic_scale() -> None:
    random = np.random.default_rng(0)
    before, same, other = (summary(random.lognormal(mean, 3, 20_000)) for mean in (2, 2, 3))
    assert population_stability_index(before, same) < 0.02
    assert population_stability_index(before, other) > 0.08


def test_few_numbers_are_compared_value_by_value() -> None:
    before = summary([1.0] * 50 + [2.0] * 50)
    after = summary([1.0] * 90 + [2.0] * 10)
    assert population_stability_index(before, after) == pytest.approx(0.4 * np.log(0.9 / 0.5 * 0.5 / 0.1), rel=0.05)
    assert kolmogorov_smirnov(before, after) == pytest.approx(0.4)
    assert population_stability_index(before, summary([3.0] * 100)) > 3


def test_texts_are_compared_by_the_most_frequent_of_the_reference() -> None:
    before = summary(["a"] * 60 + ["b"] * 40)
    assert population_stability_index(before, summary(["a"] * 600 + ["b"] * 400)) < 0.001
    assert population_stability_index(before, summary(["a"] * 60 + ["new"] * 40)) > 1
    lists = summary([["a"], ["a", "b"]] * 50)
    assert population_stability_index(lists, summary([["b"], ["a", "b"]] * 50)) > 0.1


def test_two_that_lie_far_apart_do_not_need_a_bin_for_all_between() -> None:
    left, right = aligned(summary([5.0] * 3).histograms[0], summary([1e9] * 4).histograms[0])
    assert (left.level, left.first, len(left.counts)) == (right.level, right.first, len(right.counts))
    assert len(left.counts) <= MOST_BINS
    assert (sum(left.counts), sum(right.counts)) == (3, 4)


def test_aligned_histograms_keep_their_counts() -> None:
    fine = Histogram(scale="linear", level=0, first=3, counts=(1, 2, 3))
    coarse = Histogram(scale="linear", level=1, first=0, counts=(7, 8))
    left, right = aligned(fine, coarse)
    assert left == Histogram(scale="linear", level=1, first=0, counts=(0, 1, 5))
    assert right == Histogram(scale="linear", level=1, first=0, counts=(7, 8, 0))


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"tables": {"events": {"columns": {"value": {"kind": 1}}}}}'])
def test_a_reference_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "validation.json"
    with pytest.raises(TowerlineError, match=f"reference {re.escape(str(path))}: No such file"):
        reference_column(path, "events", "value")
    path.write_text(text)
    with pytest.raises(TowerlineError, match=r"has no statistics of events.value .*name the validation.json"):
        reference_column(path, "events", "value")
