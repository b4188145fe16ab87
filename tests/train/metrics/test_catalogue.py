import math

import numpy as np
import pytest

from train.metrics.catalogue import coverage, exposures, gini


def test_exposures_leave_padding_out() -> None:
    assert exposures(np.array([[1, 2], [2, 0], [5, 2]]), 6).tolist() == [1, 3, 0, 0, 1, 0]


def test_coverage_by_hand() -> None:
    assert coverage(np.array([1, 3, 0, 0, 1, 0])) == 3 / 6


@pytest.mark.parametrize("counts", [[1, 3, 0, 0, 1, 0], [7, 7, 7], [0, 0, 0, 9], [4, 1, 2, 2, 8]])
def test_gini_is_half_the_relative_mean_difference(counts: list[int]) -> None:
    differences = [abs(a - b) for a in counts for b in counts]
    mean = sum(counts) / len(counts)
    expected = sum(differences) / len(differences) / 2 / mean
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_gini_of_nothing_is_undefined() -> None:
    assert math.isnan(gini(np.array([0, 0])))
