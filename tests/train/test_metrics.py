import math

import numpy as np
import pytest

from train.metrics import items_shown, mrr, ndcg_at, ranks_of, recall_at

RANKS = np.array([0, 1, 9, 10, -1])


def test_ranks_are_places_in_the_list() -> None:
    ranked_BK = np.array([[5, 3, 9], [5, 3, 9], [5, 3, 9], [2, 0, 0]])
    assert ranks_of(np.array([5, 9, 4, 7]), ranked_BK).tolist() == [0, 2, -1, -1]


def test_recall_by_hand() -> None:
    assert recall_at(RANKS, 10) == 3 / 5
    assert recall_at(RANKS, 1) == 1 / 5
    assert recall_at(RANKS, 11) == 4 / 5


def test_ndcg_by_hand() -> None:
    assert ndcg_at(RANKS, 10) == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(11)) / 5)
    assert ndcg_at(RANKS, 1) == pytest.approx(1 / 5)
    assert ndcg_at(np.array([-1, -1]), 10) == 0


def test_mrr_by_hand() -> None:
    assert mrr(RANKS) == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 5)


def test_coverage_counts_items_in_anybodys_first_places_and_no_padding() -> None:
    ranked_BK = np.array([[1, 2, 3], [2, 1, 4], [5, 0, 0]])
    assert items_shown(ranked_BK, 2) == {1, 2, 5}
    assert items_shown(ranked_BK, 3) == {1, 2, 3, 4, 5}
