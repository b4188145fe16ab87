import numpy as np
import pytest

from train.index import Codes, ExactIndex, Floats, top_items
from train.vocabulary import UNKNOWN


def brute_force(scores_I: Floats, count: int, exclude: Codes) -> tuple[list[int], list[float]]:
    """By the definition: allowed codes by falling score, then by code, filled up with nothing."""
    allowed = [code for code in range(1, len(scores_I)) if code not in exclude.tolist()]
    best = sorted(allowed, key=lambda code: (-scores_I[code], code))[:count]
    missing = min(count, len(scores_I) - 1) - len(best)
    return best + [UNKNOWN] * missing, [float(scores_I[code]) for code in best] + [-np.inf] * missing


@pytest.mark.parametrize("count", [1, 7, 29, 30, 31, 1000])
def test_search_equals_brute_force_with_ties_by_code(count: int) -> None:
    random = np.random.default_rng(count)
    vectors_ID = random.integers(-2, 3, (31, 3)).astype(np.float32)  # whole numbers: exact, and many ties
    queries_BD = random.integers(-2, 3, (40, 3)).astype(np.float32)
    exclude = [random.choice(31, random.integers(0, 31), replace=False) for _ in queries_BD]
    codes_BK, scores_BK = ExactIndex(vectors_ID).search(queries_BD, count, exclude)
    assert codes_BK.shape == (40, min(count, 30))
    for row, query_D in enumerate(queries_BD):
        codes, scores = brute_force(vectors_ID @ query_D, count, exclude[row])
        assert codes_BK[row].tolist() == codes
        assert scores_BK[row].tolist() == scores


def test_without_exclusion_every_item_but_unknown_is_found() -> None:
    vectors_ID = np.array([[100], [1], [3], [2]], dtype=np.float32)
    codes_BK, scores_BK = ExactIndex(vectors_ID).search(np.array([[1], [-1]], dtype=np.float32), 10)
    assert codes_BK.tolist() == [[2, 3, 1], [1, 3, 2]]
    assert scores_BK.tolist() == [[3, 2, 1], [-1, -2, -3]]


def test_a_query_that_runs_out_of_items_says_so() -> None:
    vectors_ID = np.ones((4, 2), dtype=np.float32)
    exclude = [np.array([1, 3, 3, 0]), np.array([1, 2, 3]), np.array([], dtype=np.int64)]
    codes_BK, scores_BK = ExactIndex(vectors_ID).search(np.ones((3, 2), dtype=np.float32), 3, exclude)
    assert codes_BK.tolist() == [[2, UNKNOWN, UNKNOWN], [UNKNOWN] * 3, [1, 2, 3]]
    assert np.isneginf(scores_BK).tolist() == [[False, True, True], [True] * 3, [False] * 3]


def test_search_leaves_the_vectors_and_the_queries_alone() -> None:
    random = np.random.default_rng(0)
    vectors_ID, queries_BD = random.random((9, 4), dtype=np.float32), random.random((5, 4), dtype=np.float32)
    kept = vectors_ID.copy(), queries_BD.copy()
    index = ExactIndex(vectors_ID)
    first = index.search(queries_BD, 4, [np.array([2])] * 5)
    again = index.search(queries_BD, 4, [np.array([2])] * 5)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(vectors_ID, kept[0])
    np.testing.assert_array_equal(queries_BD, kept[1])


def test_a_row_does_not_depend_on_the_other_rows_of_its_batch() -> None:
    random = np.random.default_rng(1)
    index = ExactIndex(random.standard_normal((50, 8)).astype(np.float32))
    queries_BD = random.standard_normal((20, 8)).astype(np.float32)
    together, _ = index.search(queries_BD, 10)
    alone = np.concatenate([index.search(queries_BD[row : row + 1], 10)[0] for row in range(20)])
    np.testing.assert_array_equal(together, alone)


def test_top_items_of_equal_scores_are_the_smallest_codes() -> None:
    scores_BI = np.zeros((1, 100), dtype=np.float32)
    scores_BI[0, UNKNOWN] = -np.inf
    scores_BI[0, 70] = 1
    assert top_items(scores_BI, 4)[0].tolist() == [[70, 1, 2, 3]]


def test_no_queries_give_no_rows() -> None:
    codes_BK, scores_BK = ExactIndex(np.ones((4, 2), dtype=np.float32)).search(np.ones((0, 2), dtype=np.float32), 2)
    assert codes_BK.shape == scores_BK.shape == (0, 2)
