"""faiss beside exact search, and which of the two is taken."""

import logging

import numpy as np
import pytest

from train.approximate_index import FaissIndex
from train.index import Codes, ExactIndex, Floats, overlap
from train.index_choice import IndexConfig, choose_index, measure
from train.vocabulary import UNKNOWN

ITEMS, DIM, COUNT = 4_000, 16, 20


def vectors(items: int, seed: int = 0) -> Floats:
    """Item vectors in 40 groups, bias last; row `UNKNOWN` would be the best for everybody."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, DIM + 1))
    found = centres[random.integers(0, 40, items + 1)] + 0.3 * random.standard_normal((items + 1, DIM + 1))
    found[UNKNOWN] = 100
    return found.astype(np.float32)


def queries(count: int) -> Floats:
    return vectors(count, seed=1)[1:]


def everywhere(vectors_ID: Floats) -> FaissIndex:
    index = FaissIndex(vectors_ID)
    index.probes = index.clusters
    return index


def equal(found: tuple[Codes, Floats], expected: tuple[Codes, Floats]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most_excluded", [0, 30, ITEMS])
def test_looking_into_every_cluster_it_finds_what_exact_search_finds(most_excluded: int) -> None:
    """Whatever is excluded: where that is most of the catalogue, clusters are no help and it says so to nobody."""
    random, vectors_ID = np.random.default_rng(2), vectors(ITEMS)
    exclude = [random.choice(ITEMS + 1, random.integers(0, most_excluded + 1), replace=False) for _ in range(25)]
    expected = ExactIndex(vectors_ID).search(queries(25), COUNT, exclude)
    equal(everywhere(vectors_ID).search(queries(25), COUNT, exclude), expected)


def test_items_that_came_later_are_found_and_the_index_before_does_not_know_them() -> None:
    vectors_ID = vectors(ITEMS + 300)
    before = everywhere(vectors_ID[: ITEMS + 1])
    after = before.grown(vectors_ID)
    exclude = [np.array([ITEMS + 5, 7])] * 25
    equal(after.search(queries(25), COUNT, exclude), ExactIndex(vectors_ID).search(queries(25), COUNT, exclude))
    equal(before.search(queries(25), COUNT), ExactIndex(vectors_ID[: ITEMS + 1]).search(queries(25), COUNT))
    assert (after.search(queries(25), COUNT)[0] > ITEMS).any()
    equal(after.grown(vectors_ID).search(queries(25), COUNT), after.search(queries(25), COUNT))


def test_nobody_gets_fewer_items_than_there_are() -> None:
    """One cluster does not hold so many; then all items are looked at, for those who need it."""
    index, exact = FaissIndex(vectors(ITEMS)), ExactIndex(vectors(ITEMS))
    assert index.clusters > 20
    equal(index.search(queries(9), 400), exact.search(queries(9), 400))
    all_but_three = [np.arange(1, ITEMS - 2)]
    equal(index.search(queries(1), 5, all_but_three), exact.search(queries(1), 5, all_but_three))
    assert index.search(queries(0), 5)[0].shape == (0, 5)


def test_few_clusters_find_most_of_it() -> None:
    exact, approximate = ExactIndex(vectors(ITEMS)), FaissIndex(vectors(ITEMS))
    measured = measure(exact, approximate, queries(32), COUNT, min_recall=0.8)
    assert measured.recall >= 0.8
    assert measured.probes <= approximate.clusters // 4
    assert min(measured.exact_ms, measured.faiss_ms) > 0
    assert overlap(np.array([[3, 4, 0], [0, 0, 0]]), np.array([[1, 2, 3], [0, 0, 0]])) == 0.5


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (IndexConfig(), ExactIndex),
        (IndexConfig(kind="exact", measured_from=1), ExactIndex),
        (IndexConfig(kind="faiss", min_recall=0.5), FaissIndex),
    ],
)
def test_a_small_catalogue_is_searched_exactly_unless_faiss_is_asked_for(config: IndexConfig, kind: type) -> None:
    assert type(choose_index(vectors(ITEMS), queries, COUNT, config)) is kind


@pytest.mark.parametrize("kind", ["auto", "faiss"])
def test_without_the_recall_that_is_asked_for_search_is_exact(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Random directions have no clusters: a quarter of them does not hold all neighbours."""
    scattered_ID = np.random.default_rng(0).standard_normal((ITEMS + 1, 64)).astype(np.float32)
    config = IndexConfig.model_validate({"kind": kind, "measured_from": 100, "min_recall": 1})
    chosen = choose_index(scattered_ID, lambda count: scattered_ID[1 : count + 1], COUNT, config)
    assert type(chosen) is ExactIndex
    assert "at least 1.000 is asked for); search is by ExactIndex" in caplog.text


def test_the_faster_one_is_taken_and_what_was_measured_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_index(vectors(60_000), queries, COUNT, IndexConfig(min_recall=0.8))
    (said,) = caplog.messages
    exact_ms, faiss_ms = (float(said.split(f"{name} ")[1].split(" ms")[0]) for name in ("exact", "faiss"))
    assert said.endswith(f"search is by {type(chosen).__name__}")
    assert isinstance(chosen, FaissIndex) == (faiss_ms < exact_ms)
