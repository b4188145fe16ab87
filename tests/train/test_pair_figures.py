import numpy as np
import pytest

from tests.train.conftest import DonePath
from train.pair_figures import area_under_curve, expected_calibration_error


def test_the_error_is_the_gap_of_each_bin_weighted_by_its_size() -> None:
    """By hand: .9 and .95 with one right of two (gap .425), .2 with none right of two (gap .2)."""
    confidence = np.array([0.9, 0.95, 0.2, 0.2])
    is_right = np.array([True, False, False, False])
    assert expected_calibration_error(confidence, is_right) == pytest.approx((0.425 * 2 + 0.2 * 2) / 4)


def test_what_keeps_its_word_has_no_error() -> None:
    confidence = np.repeat([0.25, 1.0], [8, 3])
    is_right = np.array([True, True, *[False] * 6, True, True, True])
    assert expected_calibration_error(confidence, is_right) == pytest.approx(0)
    assert expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)) is None


def test_the_comparison_measures_the_pair(path: DonePath) -> None:
    figures = path.evaluation.figures
    assert 0 <= figures["calibration_error/two_tower_ranker"] <= 1
    assert figures["latency_p95_ms/two_tower_ranker"] > 0
    assert "latency_p95_ms/two_tower" not in figures
    for name in ("calibration_error", "like_calibration_error"):
        assert figures[f"{name}/two_tower_ranker"] != figures[f"{name}_before/two_tower_ranker"]
    assert 0 <= figures["like_auc/two_tower_ranker"] <= 1
    assert 0 < figures["value_rmse/two_tower_ranker"] < 4


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])
    assert area_under_curve(scores, labels) == pytest.approx(3.5 / 4)
    assert area_under_curve(scores, ~labels) == pytest.approx(0.5 / 4)
    assert area_under_curve(scores, np.ones(4, dtype=bool)) is None
