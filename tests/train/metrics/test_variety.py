import itertools
import math

import numpy as np
import pytest
import scipy.sparse

from train.metrics.variety import intra_list_diversity, novelty

OF_ITEMS: list[set[int]] = [set(), {0, 1}, {1}, {0, 1, 2}, set(), {3}]
"""Attributes by item code."""


@pytest.fixture
def attributes_IA() -> scipy.sparse.csr_array:
    dense = np.zeros((len(OF_ITEMS), 4), dtype=np.int64)
    for code, attributes in enumerate(OF_ITEMS):
        dense[code, sorted(attributes)] = 1
    return scipy.sparse.csr_array(dense)


def test_novelty_is_the_mean_surprise_in_bits() -> None:
    users_I = np.array([0, 8, 4, 1, 0])
    values = novelty(np.array([[1, 2, 3], [3, 4, 0], [0, 0, 0]]), users_I, 8)
    assert values[:2].tolist() == pytest.approx([(0 + 1 + 3) / 3, (3 + 3) / 2])
    assert math.isnan(values[2])


def test_diversity_is_the_mean_jaccard_distance_of_the_pairs(attributes_IA: scipy.sparse.csr_array) -> None:
    lists = [[1, 2, 3], [4, 5, 1], [1, 3, 0], [2, 0, 0]]
    values = intra_list_diversity(np.array(lists), attributes_IA)
    for ranked, value in zip(lists[:3], values, strict=False):
        distances = []
        for a, b in itertools.combinations([code for code in ranked if code], 2):
            either = OF_ITEMS[a] | OF_ITEMS[b]
            distances.append(1 - len(OF_ITEMS[a] & OF_ITEMS[b]) / len(either))
        assert value == pytest.approx(sum(distances) / len(distances))
    assert math.isnan(values[3]), "one item has no pair"


def test_items_without_attributes_have_nothing_in_common(attributes_IA: scipy.sparse.csr_array) -> None:
    assert intra_list_diversity(np.array([[4, 4]]), attributes_IA).tolist() == [1.0]
