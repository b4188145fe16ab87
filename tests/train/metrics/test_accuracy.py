"""Every metric by hand, and against a loop over users that follows the textbook."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics.accuracy import (
    Codes,
    Values,
    average_precision_at,
    first_places,
    hit_rate_at,
    hits_of,
    is_among,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    truncated_recall_at,
)

RANKED = np.array([[5, 3, 9, 1], [2, 4, 6, 8], [7, 0, 0, 0], [1, 2, 3, 4]])
TARGETS = [np.array(codes) for codes in ([3, 1, 70], [4], [9], [1, 2, 3, 4, 5, 6])]
HITS = hits_of(RANKED, TARGETS)
POSITIVES = np.array([3, 1, 1, 6])
LOG3, LOG5 = 1 / math.log2(3), 1 / math.log2(5)


def test_hits_are_the_right_answers_of_the_same_row() -> None:
    assert HITS.astype(int).tolist() == [[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert first_places(HITS).tolist() == [1, 1, -1, 0]


def test_padding_is_no_hit_even_if_the_right_answer_has_no_code() -> None:
    assert not hits_of(np.array([[0, 0], [3, 0]]), [np.array([0]), np.array([0])]).any()
    assert is_among(np.array([[0, 1]]), [np.array([0])]).tolist() == [[True, False]]


def test_nothing_is_among_nothing() -> None:
    empty = np.empty(0, dtype=np.int64)
    assert is_among(np.array([[1, 2], [0, 3]]), [empty, empty]).tolist() == [[False, False], [False, False]]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (lambda hits, positives: recall_at(hits, positives, 2), [1 / 3, 1, 0, 2 / 6]),
        (lambda hits, positives: truncated_recall_at(hits, positives, 2), [1 / 2, 1, 0, 1]),
        (lambda hits, positives: truncated_recall_at(hits, positives, 4), [2 / 3, 1, 0, 1]),
        (lambda hits, positives: hit_rate_at(hits, positives, 1), [0, 0, 0, 1]),
        (lambda hits, positives: hit_rate_at(hits, positives, 4), [1, 1, 0, 1]),
        (reciprocal_rank, [1 / 2, 1 / 2, 0, 1]),
        (lambda hits, positives: average_precision_at(hits, positives, 4), [(1 / 2 + 2 / 4) / 3, 1 / 2, 0, 1]),
        (lambda hits, positives: average_precision_at(hits, positives, 2), [(1 / 2) / 2, 1 / 2, 0, 1]),
        (lambda hits, positives: ndcg_at(hits, positives, 4), [(LOG3 + LOG5) / (1 + LOG3 + 1 / 2), LOG3, 0, 1]),
        (lambda hits, positives: ndcg_at(hits, positives, 2), [LOG3 / (1 + LOG3), LOG3, 0, 1]),
        (lambda hits, positives: ndcg_at(hits, positives, 10), None),
    ],
)
def test_by_hand(metric: Callable[..., Values], expected: list[float] | None) -> None:
    values = metric(HITS, POSITIVES)
    if expected is None:  # lists shorter than k: what is missing are misses
        ideal = sum(1 / math.log2(2 + place) for place in range(6))
        got = sum(1 / math.log2(2 + place) for place in range(4))
        assert values[3] == pytest.approx(got / ideal)
    else:
        assert values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "metric",
    [
        lambda hits, positives: recall_at(hits, positives, 2),
        lambda hits, positives: ndcg_at(hits, positives, 2),
        lambda hits, positives: hit_rate_at(hits, positives, 2),
        lambda hits, positives: average_precision_at(hits, positives, 2),
        reciprocal_rank,
    ],
)
def test_where_nothing_is_asked_for_there_is_no_value(metric: Callable[..., Values]) -> None:
    assert np.isnan(metric(np.array([[False, False]]), np.array([0]))).all()


def dcg(gains: list[int], k: int) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:k]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), positives=st.integers(1, 15))
def test_against_a_loop_over_the_list(seed: int, k: int, positives: int) -> None:
    random = np.random.default_rng(seed)
    ranked: Codes = random.permutation(30)[:10][np.newaxis] + 1
    targets = random.permutation(30)[:positives] + 1
    gains = [int(code in targets) for code in ranked[0].tolist()]
    hits_BK, positives_B = hits_of(ranked, [targets]), np.array([positives])
    assert ndcg_at(hits_BK, positives_B, k)[0] == pytest.approx(dcg(gains, k) / dcg([1] * min(positives, k), k))
    assert recall_at(hits_BK, positives_B, k)[0] == pytest.approx(sum(gains[:k]) / positives)
    assert truncated_recall_at(hits_BK, positives_B, k)[0] == pytest.approx(sum(gains[:k]) / min(positives, k))
    precisions = [sum(gains[: place + 1]) / (place + 1) for place, gain in enumerate(gains[:k]) if gain]
    assert average_precision_at(hits_BK, positives_B, k)[0] == pytest.approx(sum(precisions) / min(positives, k))
    first = gains.index(1) if 1 in gains else None
    assert reciprocal_rank(hits_BK, positives_B)[0] == pytest.approx(0 if first is None else 1 / (first + 1))
