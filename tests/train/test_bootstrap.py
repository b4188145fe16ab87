"""Intervals against theory and against a loop, the test against all sign flips."""

import itertools
import math

import numpy as np
import pytest

from cluster.errors import TowerlineError
from train import bootstrap as module
from train.bootstrap import Interval, bootstrap, bootstrap_columns, paired_bootstrap, randomisation_test


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_interval_of_a_mean_is_that_of_theory(random: np.random.Generator) -> None:
    values = random.normal(3, 2, size=2000)
    interval = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_covers_the_truth_about_as_often_as_it_says(random: np.random.Generator) -> None:
    covered = 0
    for number in range(300):
        interval = bootstrap(random.normal(1, 1, size=40), seed=number, resamples=400)
        covered += interval.low <= 1 <= interval.high
    assert 0.89 <= covered / 300 <= 0.98


def test_values_of_one_user_are_drawn_together(random: np.random.Generator) -> None:
    """Three equal values of each user are no more evidence than one."""
    values = random.normal(size=200)
    users = [f"u{number}" for number in range(200)]
    alone = bootstrap(values, users)
    repeated = bootstrap(np.repeat(values, 3), np.repeat(users, 3))
    apart = bootstrap(np.repeat(values, 3))
    assert (repeated.mean, repeated.low, repeated.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)


def test_users_count_with_all_their_values(random: np.random.Generator) -> None:
    """Against a loop that draws users and pools what they bring."""
    values = random.normal(size=60)
    users = random.integers(0, 12, size=60)
    own = {user: values[users == user] for user in np.unique(users)}
    names = list(own)
    means = []
    for _ in range(4000):
        drawn = random.choice(names, size=len(names))
        means.append(np.concatenate([own[user] for user in drawn]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    interval = bootstrap(values, users, resamples=4000)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04)


def test_the_seed_decides_and_the_size_of_the_chunks_does_not(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random.normal(size=50)
    first = bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) == first
    assert bootstrap(values, seed=2) != first
    monkeypatch.setattr(module, "DRAWS_AT_ONCE", 500)
    assert bootstrap(values, seed=1) == first


def test_columns_share_their_draws_and_leave_out_what_has_no_value(random: np.random.Generator) -> None:
    values = random.normal(size=(80, 1))
    part = np.where(np.arange(80)[:, np.newaxis] < 30, values, np.nan)
    both = bootstrap_columns(np.hstack([values, part, values + 1]))
    alone = bootstrap(values[:, 0])
    assert (both[0].low, both[0].high) == pytest.approx((alone.low, alone.high))
    assert both[1].mean == pytest.approx(values[:30].mean())
    assert both[1].high - both[1].low > both[0].high - both[0].low
    assert both[2].low == pytest.approx(both[0].low + 1)


def test_a_value_that_never_varies_has_an_interval_of_no_width() -> None:
    assert bootstrap(np.ones(10)) == Interval(mean=1, low=1, high=1)
    assert paired_bootstrap(np.ones(10), np.ones(10)) == Interval(mean=0, low=0, high=0)
    assert randomisation_test(np.zeros(10)) == 1


def test_pairs_are_surer_than_two_means(random: np.random.Generator) -> None:
    base = random.normal(size=300)
    better = base + 0.1 + 0.05 * random.normal(size=300)
    assert paired_bootstrap(better, base).excludes_zero
    assert bootstrap(better).low < bootstrap(base).high


def test_the_p_value_is_the_share_of_sign_flips_that_reach_as_far(random: np.random.Generator) -> None:
    differences = random.normal(0.5, 1, size=10)
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=10)]
    exact = np.mean(np.array(flipped) >= abs(differences.sum()) - 1e-9)
    assert randomisation_test(differences, resamples=20_000) == pytest.approx(exact, abs=0.01)


def test_signs_are_flipped_by_user(random: np.random.Generator) -> None:
    differences = random.normal(0.4, 1, size=12)
    users = list(range(12))
    alone = randomisation_test(differences, users, resamples=5000)
    repeated = randomisation_test(np.repeat(differences, 4), np.repeat(users, 4), resamples=5000)
    apart = randomisation_test(np.repeat(differences, 4), resamples=5000)
    assert repeated == alone
    assert apart < alone


def test_without_a_difference_p_values_are_uniform(random: np.random.Generator) -> None:
    values = [randomisation_test(random.normal(size=30), seed=number, resamples=200) for number in range(300)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("values", "users", "message"),
    [
        (np.array([1.0]), None, "2 users or more, there are 1"),
        (np.array([1.0, 2.0]), ["a", "a"], "2 users or more, there are 1"),
        (np.array([np.nan, np.nan]), None, "no value for any user"),
        (np.array([1.0, 2.0]), ["a"], "2 values are of 1 users"),
    ],
)
def test_what_has_no_interval_is_refused(values: np.ndarray, users: list[str] | None, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        bootstrap(values, users)


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(TowerlineError, match="same questions, there are 3 and 2"):
        paired_bootstrap(np.zeros(3), np.zeros(2))
