import math

import numpy as np
import pytest
import scipy.sparse

from train.metrics.calibration import SMOOTHING, miscalibration

ATTRIBUTES = scipy.sparse.csr_array(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]))
"""Items 1 … 5: A, B, A and B, C, none."""


def divergence(p: list[float], q: list[float]) -> float:
    smoothed = [(1 - SMOOTHING) * shown + SMOOTHING * wanted for wanted, shown in zip(p, q, strict=True)]
    return sum(w * math.log(w / s) for w, s in zip(p, smoothed, strict=True) if w)


def test_by_hand() -> None:
    """History A, A, A and B: 5/6 A, 1/6 B. List B, A and B, C: 1/6 A, 1/2 B, 1/3 C."""
    histories = [np.array([1, 1, 3])]
    value = miscalibration(np.array([[2, 3, 4, 0]]), histories, ATTRIBUTES)[0]
    assert value == pytest.approx(divergence([5 / 6, 1 / 6, 0], [1 / 6, 1 / 2, 1 / 3]))


def test_the_same_mix_has_no_divergence_and_the_opposite_one_a_finite_one() -> None:
    values = miscalibration(np.array([[2, 1], [4, 4]]), [np.array([3]), np.array([1])], ATTRIBUTES)
    assert values[0] == pytest.approx(0)
    assert values[1] == pytest.approx(math.log(1 / SMOOTHING))


def test_each_event_of_the_history_counts() -> None:
    often, once = (
        miscalibration(np.array([[1]]), [np.array(codes)], ATTRIBUTES)[0] for codes in ([1, 1, 1, 2], [1, 2])
    )
    assert often < once


@pytest.mark.parametrize(("history", "ranked"), [([], [1]), ([5], [1]), ([0], [1]), ([1], [0]), ([1], [5])])
def test_without_attributes_on_either_side_there_is_no_value(history: list[int], ranked: list[int]) -> None:
    values = miscalibration(np.array([ranked]), [np.array(history, dtype=np.int64)], ATTRIBUTES)
    assert np.isnan(values).all()
