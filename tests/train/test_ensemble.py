"""Several sources at once: who finds what, what each says, ties, threads, files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from tests.train.letters import NOTHING, asking, events_of, letters, random_words
from train.index import Codes, Floats, top_items
from train.models import ensemble as ensembles
from train.models.blending import Blend, BlendConfig
from train.models.candidate_features import SOURCE_FEATURES, feature_names, source_features
from train.models.ensemble import CandidatesConfig, Ensemble, EnsembleConfig, Found
from train.models.popularity import Popularity
from train.models.sources import SOURCES, Source
from train.vocabulary import UNKNOWN, Vocabulary

ALPHABET = "abcdefghijkl"
WORDS = random_words(80, ALPHABET)
ASKED = asking("abc", "", "lk", "ghi", "a")
EXCLUDE = [np.array([1, 2, 3]), NOTHING, np.array([12, 11]), np.array([7]), np.arange(1, 10)]
RECIPROCAL = CandidatesConfig(blend="reciprocal_rank", depth=6, rank_constant=10)


def fitted(candidates: CandidatesConfig, *kinds: str) -> Ensemble:
    config = EnsembleConfig.model_validate({"sources": [{"kind": kind} for kind in kinds], "candidates": candidates})
    return Ensemble.fit(config, events_of(*WORDS), letters(ALPHABET))


def two_tower(rows: pl.DataFrame) -> Floats:
    """Scores that differ by row, of nobody's making."""
    lengths = rows["history_items"].list.len().to_numpy()
    waves: Floats = np.sin(np.arange(len(ALPHABET) + 1) * (1.0 + lengths[:, np.newaxis])).astype(np.float32)
    return waves


class Tower:
    """`two_tower` as a source of a `Blend`."""

    vocabulary = letters(ALPHABET)

    def fit(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        raise NotImplementedError

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        scores_BI = two_tower(rows)
        scores_BI[:, UNKNOWN] = -np.inf
        for scores_I, codes in zip(scores_BI, exclude, strict=True):
            scores_I[codes] = -np.inf
        return top_items(scores_BI, count)[0]

    def score(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        return np.take_along_axis(two_tower(rows), candidates_BK, axis=1)

    def similar(self, items: Codes, count: int) -> Codes:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def equal(one: Found, other: Found) -> None:
    for name in ("codes_BK", "scores_BK", "sources_BKS", "named_BN"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def sources_of(*kinds: str) -> dict[str, Source]:
    sources: dict[str, Source] = {kind: SOURCES[kind]() for kind in kinds}
    for source in sources.values():
        source.fit(events_of(*WORDS), letters(ALPHABET))
    return sources


def test_the_two_tower_alone_finds_and_every_source_says_what_it_thinks() -> None:
    found = fitted(CandidatesConfig(), *SOURCES).find(two_tower, ASKED, EXCLUDE, 8)
    np.testing.assert_array_equal(found.codes_BK, Tower().recommend(ASKED, EXCLUDE, 8))
    present_BK = found.codes_BK != UNKNOWN
    assert not present_BK.all()
    assert found.named_BN.tolist() == present_BK.sum(axis=1, keepdims=True).tolist()
    np.testing.assert_array_equal(found.scores_BK[present_BK], Tower().score(ASKED, found.codes_BK)[present_BK])
    for number, (kind, source) in enumerate(sources_of(*SOURCES).items()):
        np.testing.assert_array_equal(found.sources_BKS[:, :, number], source.score(ASKED, found.codes_BK), kind)


def test_blended_candidates_are_those_of_reciprocal_rank_fusion() -> None:
    """As `train.models.blending.Blend` fuses them; the two-tower is one of its sources then."""
    kinds = ("item_item", "ease", "ials")
    ensemble = fitted(RECIPROCAL, *kinds)
    found = ensemble.find(two_tower, ASKED, EXCLUDE, 8)
    blend = Blend({"two_tower": Tower(), **sources_of(*kinds)}, BlendConfig(depth=6, rank_constant=10))
    np.testing.assert_array_equal(found.codes_BK, blend.recommend(ASKED, EXCLUDE, 8))
    present_BK = found.codes_BK != UNKNOWN
    assert (found.scores_BK[:, 1:] <= found.scores_BK[:, :-1]).all()
    assert ensemble.config.score_names == ensemble.config.finders == ("two_tower", *kinds)
    np.testing.assert_array_equal(
        found.sources_BKS[:, :, 0], np.where(present_BK, Tower().score(ASKED, found.codes_BK), -np.inf)
    )
    lists = [source.recommend(ASKED, EXCLUDE, 6) for source in blend.sources.values()]
    for row, codes in enumerate(found.codes_BK):
        mine = codes[codes != UNKNOWN]
        assert found.named_BN[row].tolist() == [np.isin(mine, named[row]).sum() for named in lists]


def test_ties_go_to_the_smaller_code() -> None:
    """Two sources that say the opposite of each other: the first of one is as good as the first of the other."""
    popularity = Popularity()
    popularity.fit(events_of("abcd", "abc", "ab", "a"), letters("abcd"))
    config = EnsembleConfig(sources=(popularity.config,), candidates=RECIPROCAL)

    def backwards(rows: pl.DataFrame) -> Floats:
        return np.tile(np.arange(5, dtype=np.float32), (rows.height, 1))

    found = Ensemble(config, [popularity]).find(backwards, asking(""), [NOTHING], 4)
    assert found.scores_BK[0, 0] == found.scores_BK[0, 1] > found.scores_BK[0, 2] == found.scores_BK[0, 3]
    assert found.codes_BK.tolist() == [[1, 4, 2, 3]]


def test_who_waits_with_whom_and_on_how_many_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = fitted(RECIPROCAL, *SOURCES)
    together = ensemble.find(two_tower, ASKED, EXCLUDE, 8)
    with ThreadPoolExecutor(5) as threads:
        equal(ensemble.find(two_tower, ASKED, EXCLUDE, 8, threads.map), together)
    monkeypatch.setattr(ensembles, "SCORES_AT_ONCE", 1)
    alone = ensemble.find(two_tower, ASKED, EXCLUDE, 8)
    np.testing.assert_array_equal(alone.codes_BK, together.codes_BK)
    np.testing.assert_allclose(alone.sources_BKS, together.sources_BKS, rtol=1e-5, atol=1e-6)
    scored_BKS = ensemble.score(two_tower, ASKED, together.codes_BK)
    np.testing.assert_allclose(scored_BKS, together.sources_BKS, rtol=1e-5, atol=1e-6)
    assert ensemble.find(two_tower, ASKED[:0], [], 8).sources_BKS.shape == (0, 8, 5)


def test_without_a_source_a_blend_is_the_two_tower() -> None:
    found = Ensemble(EnsembleConfig(candidates=RECIPROCAL)).find(two_tower, ASKED, EXCLUDE, 8)
    np.testing.assert_array_equal(found.codes_BK, Tower().recommend(ASKED, EXCLUDE, 8))
    assert found.sources_BKS.shape == (5, 8, 0)


def test_what_is_kept_answers_as_before(tmp_path: Path) -> None:
    ensemble = fitted(RECIPROCAL, *SOURCES)
    ensemble.save(tmp_path)
    kept = Ensemble.load(tmp_path, letters(ALPHABET))
    assert kept.config == ensemble.config
    equal(kept.find(two_tower, ASKED, EXCLUDE, 8), ensemble.find(two_tower, ASKED, EXCLUDE, 8))
    assert not list(tmp_path.rglob("vocabulary.json")), "it is the two-tower's"


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    fitted(CandidatesConfig(), "ease", "ials").save(tmp_path)
    weights = tmp_path / "ials" / "weights.safetensors"
    weights.unlink()
    with pytest.raises(TowerlineError, match=r"ials/weights\.safetensors cannot be read"):
        Ensemble.load(tmp_path, letters(ALPHABET))
    with pytest.raises(TowerlineError, match=r"nowhere/ensemble\.json cannot be read"):
        Ensemble.load(tmp_path / "nowhere", letters(ALPHABET))


def test_source_features_by_hand() -> None:
    """Standardised scores; equals share the last of their places; nothing where there is no candidate."""
    codes_BK = np.array([[3, 1, 2, UNKNOWN], [4, UNKNOWN, UNKNOWN, UNKNOWN]])
    scores_BKS = np.array(
        [[[5.0, 1.0], [2.0, 1.0], [2.0, 1.0], [-np.inf, -np.inf]], [[9.0, 9.0], *[[-np.inf, -np.inf]] * 3]],
        dtype=np.float32,
    )
    found_BKF = source_features(codes_BK, scores_BKS)
    assert feature_names(("one", "two"))[-4:] == ("one_score", "one_log_rank", "two_score", "two_log_rank")
    assert len(SOURCE_FEATURES) == 2
    expected = [
        [[np.sqrt(2), 1, 0, 2], [-np.sqrt(0.5), 2, 0, 2], [-np.sqrt(0.5), 2, 0, 2], [0, 0, 0, 0]],
        [[0, 1, 0, 1], *[[0, 0, 0, 0]] * 3],
    ]
    np.testing.assert_allclose(found_BKF, np.array(expected), rtol=1e-6)
