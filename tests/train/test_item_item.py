import numpy as np
import pytest
import scipy.sparse

from tests.train.letters import NOTHING, asking, events_of, letters, random_words
from train.models import item_item
from train.models.interactions import interactions
from train.models.item_item import ItemItem, ItemItemConfig, nearest

VOCABULARY = letters("abcd")
PLAIN = ItemItemConfig(shrinkage=0, history_half_life=None)


def fitted(config: ItemItemConfig, *words: str) -> ItemItem:
    source = ItemItem(config)
    source.fit(events_of(*words), VOCABULARY)
    return source


def dense_similarities(met_UI: np.ndarray, neighbours: int, shrinkage: float) -> np.ndarray:
    """By definition: every pair, then the best of each row, ties by code."""
    shared_II = met_UI.T @ met_UI
    size_I = np.diag(shared_II)
    similarity_II = np.zeros(shared_II.shape)
    for one, two in zip(*np.nonzero(shared_II), strict=True):
        if one != two:
            similarity_II[one, two] = shared_II[one, two] / (np.sqrt(size_I[one] * size_I[two]) + shrinkage)
    for row in similarity_II:
        row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    return similarity_II


def test_sums_of_cosines_by_hand() -> None:
    # Users of a: 0, 1, 2; of b: 0, 1; of c: 2, 3; of d: 3. A repeated event counts once.
    source = fitted(PLAIN, "abb", "ab", "ac", "cd")
    cosine_ab, cosine_ac, cosine_cd = 2 / np.sqrt(3 * 2), 1 / np.sqrt(3 * 2), 1 / np.sqrt(2 * 1)
    scores = source.scores(asking("a", "bd", "aac", ""))
    expected = [
        [0, 0, cosine_ab, cosine_ac, 0],
        [0, cosine_ab, 0, cosine_cd, 0],
        [0, cosine_ac, cosine_ab, cosine_ac, cosine_cd],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    answers = source.recommend(asking("a", "c", "bd", ""), [np.array([1]), np.array([3]), np.array([2, 4]), NOTHING], 3)
    assert answers.tolist() == [[2, 3, 4], [4, 1, 2], [1, 3, 0], [1, 2, 3]]


def test_the_newest_of_a_history_counts_most() -> None:
    source = fitted(ItemItemConfig(shrinkage=0, history_half_life=1), "ab", "ab", "cd", "cd")
    np.testing.assert_allclose(source.scores(asking("ac"))[0], [0, 0, 0.5, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 100])
@pytest.mark.parametrize("shrinkage", [0.0, 7.5])
@pytest.mark.parametrize("pairs_at_once", [1, 25, 10**6])
def test_neighbours_are_those_of_the_dense_matrix(
    monkeypatch: pytest.MonkeyPatch, neighbours: int, shrinkage: float, pairs_at_once: int
) -> None:
    monkeypatch.setattr(item_item, "PAIRS_AT_ONCE", pairs_at_once)
    alphabet = "abcdefghijklmnopqrst"
    met_UI = interactions(events_of(*random_words(40, alphabet)), letters(alphabet + "!"))
    found_II = nearest(met_UI, neighbours, shrinkage)
    expected_II = dense_similarities(met_UI.toarray().astype(np.float64), neighbours, shrinkage)
    assert np.diff(found_II.indptr).max() <= neighbours
    np.testing.assert_allclose(found_II.toarray(), expected_II, rtol=1e-6)


def test_memory_grows_with_the_events_and_not_with_the_square_of_the_catalogue() -> None:
    """A dense float32 matrix of 200,000 items would take 149 GiB."""
    items, users = 200_000, 2_000
    random = np.random.default_rng(0)
    codes = random.integers(1, items + 1, (users, 20))
    met_UI = scipy.sparse.csr_array(
        (np.ones(codes.size, np.float32), codes.ravel(), np.arange(0, codes.size + 1, 20)), shape=(users, items + 1)
    )
    met_UI.sum_duplicates()
    met_UI.data[:] = 1
    found_II = nearest(met_UI, 5, 0.0)
    assert 0 < found_II.nnz <= 5 * items
    asked = int(codes[0, 0])
    user_sets = met_UI[:, [asked]].toarray()[:, 0]
    best = found_II[[asked]].toarray()[0]
    shared_I = user_sets @ met_UI
    size_I = met_UI.sum(axis=0)
    expected = np.where(shared_I > 0, shared_I / np.sqrt(np.maximum(size_I, 1) * size_I[asked]), 0)
    expected[asked] = 0
    np.testing.assert_allclose(np.sort(best)[-5:], np.sort(expected)[-5:], rtol=1e-6)


def test_of_a_user_with_many_events_the_last_ones_are_learnt_from() -> None:
    source = fitted(ItemItemConfig(shrinkage=0, history_half_life=None, events_per_user=2), "abcd")
    assert np.count_nonzero(source.scores(asking("a"))) == 0
    np.testing.assert_allclose(source.scores(asking("c"))[0], [0, 0, 0, 0, 1])
