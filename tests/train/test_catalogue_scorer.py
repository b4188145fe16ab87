"""What every candidate source promises, of all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TowerlineError
from tests.train.letters import NOTHING, asking, codes_of, events_of, letters, random_words
from train.models import catalogue_scorer
from train.models.blending import Blend
from train.models.ease import EASE
from train.models.ials import IALS, IALSConfig
from train.models.ials_blocks import in_process
from train.models.item_item import ItemItem
from train.models.popularity import Popularity, PopularityConfig
from train.models.sources import KeptSource, load_source
from train.recommender import CandidateSource
from train.vocabulary import UNKNOWN

ALPHABET = "abcdefghijklmnop"
VOCABULARY = letters(ALPHABET + "!")
"""The last item has no event."""
WORDS = random_words(60, ALPHABET)
HISTORIES = ("", "a", "onm", "x", "dcbadef", "!")


def ials() -> IALS:
    return IALS(IALSConfig(embedding_dim=6, iterations=4), in_process)


SOURCES: dict[str, Callable[[], KeptSource]] = {
    "popularity": Popularity,
    "recent": lambda: Popularity(PopularityConfig(half_life_days=3)),
    "item_item": ItemItem,
    "ease": EASE,
    "ials": ials,
    "blend": lambda: Blend({"ease": EASE(), "ials": ials(), "popularity": Popularity()}),
}


@pytest.fixture(params=SOURCES)
def fresh(request: pytest.FixtureRequest) -> Callable[[], KeptSource]:
    return SOURCES[request.param]


@pytest.fixture
def source(fresh: Callable[[], KeptSource]) -> CandidateSource:
    source = fresh()
    source.fit(events_of(*WORDS), VOCABULARY)
    return source


def met(words: tuple[str, ...]) -> list[np.ndarray]:
    return [codes_of(word, VOCABULARY) for word in words]


def test_each_allowed_item_once_then_unknown(source: CandidateSource) -> None:
    size = VOCABULARY.num_items
    answers = source.recommend(asking(*HISTORIES), met(HISTORIES), size + 5)
    assert answers.shape == (len(HISTORIES), size)
    assert answers.dtype == np.int64
    for answer, excluded in zip(answers.tolist(), met(HISTORIES), strict=True):
        allowed = set(range(1, size + 1)) - set(excluded.tolist())
        assert set(answer[: len(allowed)]) == allowed
        assert answer[len(allowed) :] == [UNKNOWN] * (size - len(allowed))


def test_a_short_answer_is_the_beginning_of_a_long_one(source: CandidateSource) -> None:
    rows, exclude = asking(*HISTORIES), met(HISTORIES)
    np.testing.assert_array_equal(source.recommend(rows, exclude, 3), source.recommend(rows, exclude, 17)[:, :3])


def test_scores_are_in_the_order_of_the_recommendations(source: CandidateSource) -> None:
    rows, exclude = asking(*HISTORIES), [NOTHING] * len(HISTORIES)
    answers = source.recommend(rows, exclude, VOCABULARY.num_items)
    scores = source.score(rows, answers)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    is_tie = np.diff(scores, axis=1) == 0
    assert (np.diff(answers, axis=1)[is_tie] > 0).all(), "ties by code"


@pytest.mark.parametrize("name", ["popularity", "item_item", "ease", "ials"])
def test_an_item_that_nobody_met_is_no_better_than_the_worst(name: str) -> None:
    """Its score is no zero among the negative ones of others."""
    source = SOURCES[name]()
    source.fit(events_of(*WORDS), VOCABULARY)
    rows, everything = asking(*HISTORIES), np.tile(np.arange(1, 18), (len(HISTORIES), 1))
    scores = source.score(rows, everything)
    np.testing.assert_array_equal(scores[:, -1], scores.min(axis=1))
    if name in ("ease", "ials"):
        assert (scores.min(axis=1) < 0).any()


def test_what_is_no_item_has_no_score(source: CandidateSource) -> None:
    scores = source.score(asking("ab"), np.array([[UNKNOWN, 3, UNKNOWN]]))
    assert np.isneginf(scores[0, [0, 2]]).all()
    assert np.isfinite(scores[0, 1])


def test_one_row_says_nothing_about_another(source: CandidateSource) -> None:
    rows, exclude = asking(*HISTORIES), met(HISTORIES)
    together = source.recommend(rows, exclude, 9)
    alone = [source.recommend(rows[row], exclude[row : row + 1], 9)[0] for row in range(len(HISTORIES))]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_nobody_asks(source: CandidateSource) -> None:
    assert source.recommend(asking(), [], 4).shape == (0, 4)
    assert source.similar(NOTHING, 4).shape == (0, 4)


def test_chunks_change_nothing(source: CandidateSource, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, exclude = asking(*HISTORIES), met(HISTORIES)
    candidates = np.tile(np.array([3, 1, 9]), (len(HISTORIES), 1))
    expected = source.recommend(rows, exclude, 9), source.score(rows, candidates), source.similar(np.arange(5), 4)
    monkeypatch.setattr(catalogue_scorer, "SCORES_AT_ONCE", 2 * (VOCABULARY.num_items + 1))
    np.testing.assert_array_equal(source.recommend(rows, exclude, 9), expected[0])
    np.testing.assert_allclose(source.score(rows, candidates), expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(source.similar(np.arange(5), 4), expected[2])


def test_nothing_is_like_itself_and_nothing_is_like_the_unknown(source: CandidateSource) -> None:
    everything = np.arange(VOCABULARY.num_items + 1)
    alike = source.similar(everything, 6)
    assert alike.shape == (len(everything), 6)
    assert not (alike[1:] == everything[1:, np.newaxis]).any()
    assert (alike[UNKNOWN] == UNKNOWN).all()
    assert (alike[codes_of("!", VOCABULARY)] == UNKNOWN).all(), "it was met by nobody"
    for row in alike.tolist():
        found = [code for code in row if code != UNKNOWN]
        assert len(set(found)) == len(found)
        assert row[len(found) :] == [UNKNOWN] * (6 - len(found))


@pytest.mark.parametrize("name", ["item_item", "ease", "ials", "blend"])
def test_near_items_are_alike(name: str) -> None:
    """Words of the world are made of letters that are near each other in the alphabet."""
    source = SOURCES[name]()
    source.fit(events_of(*WORDS), VOCABULARY)
    asked = np.arange(1, len(ALPHABET) + 1)
    alike = source.similar(asked, 3)
    distances = np.abs(alike - asked[:, np.newaxis])[alike != UNKNOWN]
    assert distances.mean() < 0.7 * len(ALPHABET) / 3, "at random it would be a third of the alphabet"


def test_the_same_events_give_the_same_answers(fresh: Callable[[], KeptSource], source: CandidateSource) -> None:
    again = fresh()
    shuffled = events_of(*WORDS).sample(fraction=1.0, shuffle=True, seed=1)
    again.fit(shuffled, VOCABULARY)
    rows, candidates = asking(*HISTORIES), np.tile(np.arange(1, 18), (len(HISTORIES), 1))
    np.testing.assert_array_equal(again.score(rows, candidates), source.score(rows, candidates))


def test_what_is_kept_answers_as_before(source: KeptSource, tmp_path: Path) -> None:
    source.save(tmp_path)
    kept = Blend.load(tmp_path) if isinstance(source, Blend) else load_source(tmp_path)
    assert kept.vocabulary == VOCABULARY
    rows, candidates = asking(*HISTORIES), np.tile(np.arange(1, 18), (len(HISTORIES), 1))
    np.testing.assert_array_equal(kept.score(rows, candidates), source.score(rows, candidates))
    np.testing.assert_array_equal(kept.similar(np.arange(18), 5), source.similar(np.arange(18), 5))


def test_a_source_that_has_learnt_nothing_says_so(fresh: Callable[[], KeptSource], tmp_path: Path) -> None:
    source = fresh()
    for use in (
        lambda: source.recommend(asking("a"), [NOTHING], 3),
        lambda: source.score(asking("a"), np.array([[1]])),
        lambda: source.similar(np.array([1]), 3),
        lambda: source.save(tmp_path),
    ):
        with pytest.raises(TowerlineError, match="has learnt nothing yet; call fit"):
            use()


def test_a_source_can_learn_anew_from_another_catalogue(fresh: Callable[[], KeptSource]) -> None:
    source = fresh()
    source.fit(events_of(*WORDS), VOCABULARY)
    source.fit(events_of("ab", "ba", "bc"), letters("abc"))
    assert source.recommend(asking("a"), [NOTHING], 9).shape == (1, 3)
