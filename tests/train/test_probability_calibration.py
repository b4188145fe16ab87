import numpy as np
import pytest
import scipy.special

from train.models.probability_calibration import STEEPEST, fit_platt, fit_slope

RANDOM = np.random.default_rng(0)


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
    return float(-np.log(np.where(label, probability, 1 - probability)).mean())


def test_platt_finds_the_line_that_made_the_labels() -> None:
    logits = RANDOM.normal(0, 2, 20_000)
    labels = RANDOM.random(20_000) < scipy.special.expit(0.4 * logits + 0.7)
    slope, offset = fit_platt(logits, labels)
    assert (slope, offset) == pytest.approx((0.4, 0.7), abs=0.04)
    fresh = RANDOM.normal(0, 2, 5_000)
    truth = RANDOM.random(5_000) < scipy.special.expit(0.4 * fresh + 0.7)
    before = log_loss(scipy.special.expit(fresh), truth)
    assert log_loss(scipy.special.expit(slope * fresh + offset), truth) < 0.9 * before


def test_the_temperature_is_found_that_made_the_choices() -> None:
    logits = RANDOM.normal(0, 2, (8_000, 6))
    logits[::3, 4:] = -np.inf
    chances = scipy.special.softmax(0.5 * logits, axis=1)
    chosen = (RANDOM.random((8_000, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=5)
    kept = np.isfinite(logits[np.arange(8_000), chosen])
    slope = fit_slope(logits[kept], chosen[kept])
    assert slope == pytest.approx(0.5, abs=0.03)


def test_equal_labels_give_no_certainty() -> None:
    slope, offset = fit_platt(np.zeros(8), np.ones(8, dtype=bool))
    assert scipy.special.expit(offset) == pytest.approx(9 / 10, abs=1e-3)
    assert 0 <= slope <= STEEPEST


def test_labels_against_the_logits_give_all_the_same_share() -> None:
    logits = np.repeat([-1.0, 1.0], 100)
    labels = np.concatenate([np.arange(100) < 80, np.arange(100) < 40])
    slope, offset = fit_platt(logits, labels)
    assert slope == 0
    assert scipy.special.expit(offset) == pytest.approx(0.6, abs=0.01)


def test_nothing_to_fit_on_changes_nothing() -> None:
    assert fit_slope(np.empty((0, 4)), np.empty(0, dtype=np.int64)) == 1.0
    assert fit_platt(np.empty(0), np.empty(0, dtype=bool)) == (1.0, 0.0)


def test_a_slope_without_an_optimum_stays_within_bounds() -> None:
    """Every choice is the best one: the steeper the better."""
    slope = fit_slope(np.array([[1.0, 0.0]]), np.array([0]))
    assert 1 < slope <= STEEPEST * 1.001
