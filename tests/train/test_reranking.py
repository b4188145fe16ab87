"""What another order of the first candidates is worth, and up to where it helps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from train.cases import Cases, Training
from train.index import Codes, Floats
from train.protocols import LEAVE_ONE_OUT
from train.reranking import (
    Bucket,
    Orders,
    Scores,
    Threshold,
    Values,
    best_weight,
    find_threshold,
    gain_up_to,
    measure_bucket,
)
from train.vocabulary import Vocabulary

USERS = ["a", "b", "c", "d"]
SCORED = (
    np.array([[3, 1, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4], [2, 0, 0, 0]]),
    np.array([[0.1, 0.9, 0.5, 0.2], [1, 1, 1, 1], [4, 3, 2, 1], [0.1, 9, 9, 9]], dtype=np.float32),
)
"""Candidates and scores: by score 1 2 4 3, by code 1 2 3 4, 1 2 3 4, and the one that there is."""


class Table:
    """A ranker that knows its answers by heart."""

    def score(self, rows: pl.DataFrame, exclude: list[Codes]) -> tuple[Codes, Floats]:
        return SCORED


def asked(targets: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Cases:
    empty = np.empty(0, dtype=np.int64)
    return Cases(
        LEAVE_ONE_OUT,
        vocabulary,
        pl.DataFrame({"user_id": USERS}),
        [empty] * 4,
        [np.array(each) for each in targets],
        Training(np.zeros(5, np.int64), np.zeros(5, np.int64), 1),
    )


def measured(targets: Sequence[Sequence[int]], vocabulary: Vocabulary, orders: Orders, places: int) -> Bucket:
    ranker: Scores = Table()
    return measure_bucket(ranker, asked(targets, vocabulary), orders, known_events=2, places=places, weights=2)


def test_only_questions_whose_value_can_change_are_reordered(vocabulary: Vocabulary) -> None:
    """Of `a` the right answer is among the first two, of `b` it is not, `c` has none and `d` a single candidate."""
    told: list[tuple[str, list[int], list[float]]] = []

    def orders(user: Mapping[str, Any], codes_M: Codes, scores_M: Values) -> list[Codes]:
        told.append((user["user_id"], codes_M.tolist(), scores_M.round(3).tolist()))
        return [np.arange(len(codes_M)), np.arange(len(codes_M))[::-1]]

    bucket = measured([[2], [4], [0], [2]], vocabulary, orders, places=2)
    assert told == [("a", [1, 2], [0.9, 0.5]), ("d", [2], [0.1])]
    third, fourth = 1 / np.log2(3), 1 / np.log2(5)
    np.testing.assert_allclose(bucket.without_N, [third, fourth, 0, 1])
    np.testing.assert_allclose(bucket.with_NW, [[third, 1], [fourth, fourth], [0, 0], [1, 1]])
    assert (bucket.known_events, bucket.reordered) == (2, 2)


def test_what_lies_behind_the_first_candidates_stays(vocabulary: Vocabulary) -> None:
    bucket = measured([[2, 3], [1], [1], [2]], vocabulary, backwards, places=3)
    first_and_last = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert bucket.without_N[0] == pytest.approx(first_and_last)
    assert bucket.with_NW[0, 0] == pytest.approx(first_and_last)
    assert bucket.with_NW[1, 0] == pytest.approx(1 / np.log2(4))


def backwards(_: Mapping[str, Any], codes_M: Codes, __: Values) -> list[Codes]:
    return [np.arange(len(codes_M))[::-1]] * 2


def bucket_of(known_events: int, *gains: float) -> Bucket:
    """100 users and their gains with each weight, which vary by less than 0.1."""
    random = np.random.default_rng(known_events)
    without_N = random.random(100)
    noise_NW = random.uniform(-0.05, 0.05, size=(100, len(gains)))
    users = pl.Series([f"u{number}" for number in range(100)])
    return Bucket(known_events, users, without_N, without_N[:, np.newaxis] + gains + noise_NW, 10, 1.0)


def test_the_threshold_is_the_last_number_up_to_which_the_gain_is_sure() -> None:
    buckets = [bucket_of(5, 0.2, -0.1), bucket_of(0, 0.1, 0.3), bucket_of(1, 0.1, 0.3), bucket_of(2, 0.0, 0.3)]
    assert find_threshold(buckets, 2) == Threshold(2, 1)
    assert find_threshold(buckets, 1) == Threshold(1, 0)
    assert find_threshold([bucket_of(0, 0.1, 0.2)], 2) == Threshold(0, 1)


@pytest.mark.parametrize("gain", [0.0, -0.2])
def test_no_gain_is_no_threshold(gain: float) -> None:
    """A sure loss is no gain either, nor is a gain that begins behind a number without one."""
    buckets = [bucket_of(0, gain), bucket_of(1, 0.3), bucket_of(3, 0.3)]
    assert find_threshold(buckets, 1) is None
    assert best_weight([bucket_of(0, gain, 0.1), bucket_of(1, 0.0, 0.1)], 2) == 1


def test_the_gain_up_to_a_threshold_is_over_all_its_questions_by_user() -> None:
    buckets = [bucket_of(0, 0.1), bucket_of(1, 0.3), bucket_of(2, -9.0)]
    interval = gain_up_to(buckets, Threshold(1, 0))
    assert interval.mean == pytest.approx(0.2, abs=0.02)
    assert 0.15 < interval.low < interval.mean < interval.high < 0.25
