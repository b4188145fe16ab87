from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import TowerlineError
from tests.train.letters import NOTHING, asking, events_of, letters, random_words
from train.index import Codes, Floats, top_items
from train.models.blending import Blend, BlendConfig
from train.models.ease import EASE
from train.models.item_item import ItemItem
from train.models.popularity import Popularity
from train.models.sources import KeptSource
from train.vocabulary import UNKNOWN, Vocabulary

ITEMS = 12
ALPHABET = "abcdefghijkl"


class Told:
    """Scores that were told, the same for every row that asks in the same place."""

    def __init__(self, scores_BI: list[list[float]]) -> None:
        self.scores_BI = np.array([[0.0, *row] for row in scores_BI], dtype=np.float32)
        self.vocabulary = letters(ALPHABET[: self.scores_BI.shape[1] - 1])

    def fit(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        raise NotImplementedError

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        scores_BI = self.scores_BI[: rows.height].copy()
        scores_BI[:, UNKNOWN] = -np.inf
        for scores_I, codes in zip(scores_BI, exclude, strict=True):
            scores_I[codes] = -np.inf
        return top_items(scores_BI, count)[0]

    def score(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        return np.take_along_axis(self.scores_BI[: rows.height], candidates_BK, axis=1)

    def similar(self, items: Codes, count: int) -> Codes:
        return self.recommend(asking(*[""] * len(items)), list(items[:, np.newaxis]), count)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def blend_of(*sources: KeptSource, **config: float | str) -> Blend:
    return Blend({f"source {number}": source for number, source in enumerate(sources)}, BlendConfig(**config))


distinct_scores = st.permutations(range(ITEMS)).map(lambda order: [float(number) for number in order])


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(distinct_scores, min_size=1, max_size=4),
    excluded=st.sets(st.integers(1, ITEMS), max_size=ITEMS - 1),
    depth=st.integers(1, ITEMS + 2),
    constant=st.floats(0.5, 100),
)
def test_reciprocal_rank_fusion_is_that_of_its_paper(
    lists: list[list[float]], excluded: set[int], depth: int, constant: float
) -> None:
    """Cormack et al., SIGIR 2009: the sum over lists of 1 / (k + place)."""
    blend = blend_of(*(Told([scores]) for scores in lists), depth=depth, rank_constant=constant)
    exclude = [np.array(sorted(excluded), dtype=np.int64)]
    expected: dict[int, float] = {}
    for scores in lists:
        allowed = [code for code in range(1, ITEMS + 1) if code not in excluded]
        named = sorted(allowed, key=lambda code: -scores[code - 1])[:depth]
        for place, code in enumerate(named, start=1):
            expected[code] = expected.get(code, 0.0) + 1 / (constant + place)
    answer = blend.recommend(asking(""), exclude, ITEMS)[0]
    found = answer[answer != UNKNOWN].tolist()
    assert set(found) == set(expected)
    values = np.array([expected[code] for code in found])
    assert (np.diff(values) <= 1e-7).all(), "best first"
    np.testing.assert_array_equal(answer[len(found) :], UNKNOWN)


@settings(max_examples=30, deadline=None)
@given(st.lists(distinct_scores, min_size=2, max_size=4))
def test_the_order_of_the_sources_says_nothing(lists: list[list[float]]) -> None:
    sources = [Told([scores]) for scores in lists]
    expected = blend_of(*sources).score(asking(""), np.arange(1, ITEMS + 1)[np.newaxis])
    np.testing.assert_allclose(
        blend_of(*sources[::-1]).score(asking(""), np.arange(1, ITEMS + 1)[np.newaxis]), expected, rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(distinct_scores, st.integers(1, 3), st.integers(1, ITEMS))
def test_sources_of_one_mind_are_one_source(scores: list[float], times: int, count: int) -> None:
    alone = Told([scores])
    blend = blend_of(*[alone] * times)
    np.testing.assert_array_equal(
        blend.recommend(asking(""), [NOTHING], count), alone.recommend(asking(""), [NOTHING], count)
    )


@settings(max_examples=30, deadline=None)
@given(distinct_scores, distinct_scores, st.integers(1, ITEMS))
def test_who_rises_in_one_list_does_not_fall_in_the_blend(one: list[float], other: list[float], code: int) -> None:
    asked = np.arange(1, ITEMS + 1)[np.newaxis]
    raised = list(one)
    raised[code - 1] = 100.0
    before = blend_of(Told([one]), Told([other])).score(asking(""), asked)[0]
    after = blend_of(Told([raised]), Told([other])).score(asking(""), asked)[0]
    assert after[code - 1] >= before[code - 1]
    assert (np.delete(after, code - 1) <= np.delete(before, code - 1)).all()


def test_a_source_that_cannot_tell_items_apart_moves_nobody() -> None:
    knows = Told([[3.0, 1.0, 2.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    says_nothing = Told([[0.0] * 4, [0.0] * 4])
    for method in ("reciprocal_rank", "learnt"):
        blend = blend_of(knows, says_nothing, method=method)
        blend.learnt = {"source 0": (1.0, 1.0), "source 1": (5.0, 5.0)}
        answers = blend.recommend(asking("", ""), [NOTHING] * 2, 4)
        assert answers.tolist() == [[4, 1, 3, 2], [1, 2, 3, 4]]


def test_equals_share_the_last_of_their_places() -> None:
    blend = blend_of(Told([[2.0, 2.0, 7.0, 1.0]]), rank_constant=1.0)
    scores = blend.score(asking(""), np.array([[1, 2, 3, 4, UNKNOWN]]))
    np.testing.assert_allclose(scores[0], [2 / 4, 2 / 4, 2 / 2, 2 / 5, -np.inf])


def test_the_source_that_is_right_gets_the_weight() -> None:
    """The chosen item is what the first source likes; the second one says anything."""
    random = np.random.default_rng(0)
    rows = asking(*[""] * 400)
    right_BI, noise_BI = random.standard_normal((400, ITEMS)), random.standard_normal((400, ITEMS))
    chosen = [np.array([row.argmax() + 1]) for row in right_BI + 0.3 * random.standard_normal((400, ITEMS))]
    blend = blend_of(Told(noise_BI.tolist()), Told(right_BI.tolist()), method="learnt")
    blend.learn(rows, [NOTHING] * 400, chosen)
    assert blend.learnt is not None
    noise, right = (sum(np.abs(blend.learnt[f"source {number}"])) for number in (0, 1))
    assert right > 5 * noise

    def found(blend: Blend) -> float:
        return float(np.mean(blend.recommend(rows, [NOTHING] * 400, 1) == np.array(chosen)))

    assert found(blend) > 1.2 * found(blend_of(*blend.sources.values()))


def test_learning_has_one_answer_and_can_be_kept(tmp_path: Path) -> None:
    words = random_words(80, ALPHABET)
    vocabulary = letters(ALPHABET)
    config = BlendConfig(method="learnt", depth=6)

    def learnt() -> Blend:
        blend = Blend({"ease": EASE(), "item item": ItemItem(), "popularity": Popularity()}, config)
        blend.fit(events_of(*(word[:-1] for word in words)), vocabulary)
        targets = [vocabulary.encode_items(pl.Series([word[-1]])) for word in words]
        met = [vocabulary.encode_items(pl.Series(list(word[:-1]))) for word in words]
        blend.learn(asking(*(word[:-1] for word in words)), met, targets)
        return blend

    blend = learnt()
    assert blend.learnt == learnt().learnt
    blend.save(tmp_path)
    kept = Blend.load(tmp_path)
    assert kept.config == config
    assert kept.learnt == blend.learnt
    rows = asking("abc", "", "lk")
    np.testing.assert_array_equal(kept.recommend(rows, [NOTHING] * 3, 9), blend.recommend(rows, [NOTHING] * 3, 9))


def test_weights_must_have_been_learnt() -> None:
    blend = blend_of(Told([[1.0, 2.0]]), method="learnt")
    with pytest.raises(TowerlineError, match="nothing was learnt; call learn"):
        blend.recommend(asking(""), [NOTHING], 2)


def test_nothing_can_be_learnt_from_targets_that_nobody_names() -> None:
    blend = blend_of(Told([[3.0, 2.0, 1.0]]), method="learnt", depth=1)
    with pytest.raises(TowerlineError, match=r"named none of the items that 1 rows chose; raise depth \(1\)"):
        blend.learn(asking(""), [NOTHING], [np.array([3])])
    with pytest.raises(TowerlineError, match="named none"):
        blend.learn(asking(""), [NOTHING], [np.array([UNKNOWN])])


def test_sources_must_speak_of_the_same_items() -> None:
    blend = blend_of(Told([[1.0, 2.0]]), Told([[1.0, 2.0, 3.0]]))
    with pytest.raises(TowerlineError, match=r"'source 0' and 'source 1' were fitted with different vocabularies"):
        blend.recommend(asking(""), [NOTHING], 2)


def test_a_blend_of_nothing_is_refused() -> None:
    with pytest.raises(TowerlineError, match="sources is empty"):
        Blend({})


def test_what_is_alike_by_both_is_most_alike() -> None:
    one, other = Told([[0.0, 9.0, 8.0, 1.0]]), Told([[0.0, 1.0, 8.0, 9.0]])
    assert blend_of(one, other).similar(np.array([1]), 3).tolist() == [[2, 4, 3]]
    sums = [1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 63 + 1 / 61]
    assert sums[0] == sums[2] > sums[1], "codes 2, 3 and 4"
