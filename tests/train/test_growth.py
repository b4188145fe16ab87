"""Models with room for items that came after their training."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

from tests.train.test_ensemble import ASKED, EXCLUDE, fitted, two_tower
from train.index import Floats
from train.models.ensemble import CandidatesConfig
from train.models.growth import resized, stacked_codes, with_rows
from train.models.sources import SOURCES


def test_tables_get_rows_of_zeros_and_others_stay_as_they_are() -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(2), "c": torch.ones(2)}
    grown = with_rows(weights, ("a", "b"), 2)
    assert grown["a"].tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert (grown["b"].tolist(), grown["c"].tolist()) == ([1, 1, 0, 0], [1, 1])


@pytest.mark.parametrize(("above", "below"), [([[1, 2]], [[3]]), ([[1]], [[2, 3]])])
def test_codes_stay_at_the_right(above: list[list[int]], below: list[list[int]]) -> None:
    stacked = stacked_codes(torch.tensor(above, dtype=torch.int32), torch.tensor(below, dtype=torch.int32))
    assert stacked.dtype == torch.int32
    assert [row[-1] for row in stacked.tolist()] == [above[0][-1], below[0][-1]]
    assert sorted(stacked.flatten().tolist()) == [0, 1, 2, 3]


def test_pairs_of_known_items_stay() -> None:
    pairs = scipy.sparse.csr_array(np.array([[0, 1], [2, 0]], dtype=np.float32))
    assert resized(pairs, 3).toarray().tolist() == [[0, 1, 0], [2, 0, 0], [0, 0, 0]]
    assert pairs.shape == (2, 2)


def test_a_source_says_the_least_of_an_item_that_it_does_not_know() -> None:
    """So it comes last for each of them, and what they say of the others does not change."""
    ensemble = fitted(CandidatesConfig(), *SOURCES)
    before = ensemble.find(two_tower, ASKED, EXCLUDE, 8)

    def with_two_more(rows: pl.DataFrame) -> Floats:
        known_BI = two_tower(rows)
        return np.hstack([known_BI, np.full((len(known_BI), 2), known_BI.min() - 1, dtype=np.float32)])

    size = two_tower(ASKED).shape[1] - 1
    after = ensemble.with_room(size + 2).find(with_two_more, ASKED, EXCLUDE, size + 2)
    np.testing.assert_array_equal(after.codes_BK[:, :8][before.codes_BK > 0], before.codes_BK[before.codes_BK > 0])
    for row, codes in enumerate(after.codes_BK):
        new = np.isin(codes, (size + 1, size + 2))
        assert new.sum() == 2
        for scores in after.sources_BKS[row].T:
            assert scores[new].max() <= scores[(codes > 0) & ~new].min()
