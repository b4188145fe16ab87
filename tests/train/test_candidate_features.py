import math

import numpy as np
import polars as pl
import pytest

from data.features import ITEM_FEATURE_COLUMNS
from data.offline.store import read_examples
from tests.train.planted import Planted
from train.encoding import encode_users
from train.models.candidate_features import (
    CANDIDATE_FEATURES,
    COVISITATION_UNIT,
    SHARE_UNIT,
    USER_FEATURES,
    Codes,
    Floats,
    candidate_features,
    user_features,
)
from train.models.covisitation import covisitation_of
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN


def cosine(vectors_ID: Floats, one: int, two: int) -> float:
    a, b = vectors_ID[one, :-1].astype(float), vectors_ID[two, :-1].astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_user_features_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "user_event_count": [0, 9],
            "user_mean_value": pl.Series([0.0, 3.5], dtype=pl.Float32),
            "user_seconds_since_last": [0.0, 86400.0],
        }
    )
    features_BF = user_features(rows)
    assert USER_FEATURES == ("log_event_count", "mean_value", "log_seconds_since_last")
    expected = np.array([[0, 0, 0], [math.log(10), 3.5, math.log(86401)]])
    np.testing.assert_allclose(features_BF, expected, rtol=1e-6)
    assert features_BF.dtype == np.float32


def test_candidate_features_by_hand(random_retrieval: RetrievalModel) -> None:
    candidates_BK = np.array([[5, 9, 2, UNKNOWN]])
    scores_BK = np.array([[3.0, 2.0, 1.0, -np.inf]], dtype=np.float32)
    assert ITEM_FEATURE_COLUMNS == ("item_event_count", "item_mean_value", "item_share", "item_seconds_since_last")
    items_BKF = np.array([[[7, 4.5, 0.01, 60], [0, 0, 0, 0], [1, 1, 1e-5, 3600], [9, 9, 9, 9]]], dtype=np.float32)
    history_BL = np.array([[UNKNOWN, UNKNOWN, 1, 2, 3, 4, 7, 8]])
    features_KF = candidate_features(candidates_BK, scores_BK, items_BKF, history_BL, random_retrieval)[0]
    vectors_ID = random_retrieval.item_vectors_ID
    vouched_K = covisitation_of(random_retrieval.covisitation, history_BL, candidates_BK)[0]
    for place, (candidate, item) in enumerate(zip(candidates_BK[0][:3], items_BKF[0][:3], strict=True)):
        cosines = [cosine(vectors_ID, candidate, code) for code in history_BL[0][2:]]
        expected = {
            "retrieval_score": (1 - place) / math.sqrt(2 / 3),
            "log_retrieval_rank": math.log2(2 + place),
            "item_log_event_count": math.log1p(item[0]),
            "item_mean_value": item[1],
            "item_log_share": math.log1p(item[2] / SHARE_UNIT),
            "item_log_seconds_since_last": math.log1p(item[3]),
            "similarity_to_last": cosines[-1],
            "similarity_to_last_5": sum(cosines[-5:]) / 5,
            "highest_similarity": max(*cosines, 0.0),
            "log_covisitation": math.log(vouched_K[place] + COVISITATION_UNIT),
        }
        assert dict(zip(CANDIDATE_FEATURES, features_KF[place].tolist(), strict=True)) == pytest.approx(
            expected, rel=1e-4, abs=1e-5
        )
    assert features_KF[3].tolist() == [0] * len(CANDIDATE_FEATURES)


def test_a_short_history_is_averaged_over_what_there_is_and_an_empty_one_gives_no_similarity(
    random_retrieval: RetrievalModel,
) -> None:
    history_BL = np.array([[UNKNOWN, UNKNOWN, 4, 6], [UNKNOWN] * 4])
    features_BKF = candidate_features(
        np.array([[3], [3]]),
        np.ones((2, 1), dtype=np.float32),
        np.zeros((2, 1, 4), dtype=np.float32),
        history_BL,
        random_retrieval,
    )
    column = CANDIDATE_FEATURES.index("similarity_to_last_5")
    expected = (cosine(random_retrieval.item_vectors_ID, 3, 4) + cosine(random_retrieval.item_vectors_ID, 3, 6)) / 2
    assert features_BKF[0, 0, column] == pytest.approx(expected, rel=1e-4)
    similar = slice(CANDIDATE_FEATURES.index("similarity_to_last"), CANDIDATE_FEATURES.index("highest_similarity") + 1)
    assert features_BKF[1, 0, similar].tolist() == [0, 0, 0]
    assert features_BKF[1, 0, -1] == pytest.approx(math.log(COVISITATION_UNIT))


def test_scores_are_standardised_within_each_list(random_retrieval: RetrievalModel) -> None:
    """The same list at another scale and place is the same; one candidate alone, or a list of equals, is at zero."""
    candidates_BK = np.tile(np.arange(1, 6), (4, 1))
    candidates_BK[2, 1:] = UNKNOWN
    scores_K = np.array([5, 3, 2.5, 1, -4], dtype=np.float32)
    scores_BK = np.stack([scores_K, scores_K * 10 + 300, scores_K, np.full(5, 7, dtype=np.float32)])
    scores_BK[2, 1:] = -np.inf
    items_BKF = np.zeros((4, 5, 4), dtype=np.float32)
    history_BL = np.zeros((4, 3), dtype=np.int64)
    found_BK = candidate_features(candidates_BK, scores_BK, items_BKF, history_BL, random_retrieval)[:, :, 0]
    assert found_BK[0].mean() == pytest.approx(0, abs=1e-6)
    assert found_BK[0].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found_BK[1], found_BK[0], rtol=1e-4)
    assert found_BK[2:].tolist() == [[0] * 5] * 2


def _lists(random_retrieval: RetrievalModel, rows: pl.DataFrame) -> tuple[Codes, Floats, Floats, Codes]:
    random = np.random.default_rng(0)
    exclude = [random.choice(62, random.integers(0, 60), replace=False) for _ in range(rows.height)]
    candidates_BK, scores_BK = random_retrieval.index.search(random_retrieval.encode_users(rows), 20, exclude)
    items_BKF = random.random((rows.height, 20, 4), dtype=np.float32) * 100
    history_BL = encode_users(rows, random_retrieval.vocabulary, 8).history_BL.numpy().astype(np.int64)
    return candidates_BK, scores_BK, items_BKF, history_BL


def test_rows_one_by_one_equal_the_batch(random_retrieval: RetrievalModel, planted: Planted) -> None:
    """A request alone is scored as in any batch, and as in training."""
    rows = read_examples(planted.folder)[:60]
    lists = _lists(random_retrieval, rows)
    assert (lists[0] == UNKNOWN).any()
    together = candidate_features(*lists, random_retrieval)
    assert np.isfinite(together).all()
    for row in range(rows.height):
        one = slice(row, row + 1)
        alone = candidate_features(lists[0][one], lists[1][one], lists[2][one], lists[3][one], random_retrieval)
        np.testing.assert_allclose(alone, together[one], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(user_features(rows)[5:6], user_features(rows[5:6]))


def test_padding_at_the_end_of_a_list_changes_nothing_before_it(
    random_retrieval: RetrievalModel, planted: Planted
) -> None:
    candidates_BK, scores_BK, items_BKF, history_BL = _lists(random_retrieval, read_examples(planted.folder)[:20])
    longer = (
        np.pad(candidates_BK, ((0, 0), (0, 5))),
        np.pad(scores_BK, ((0, 0), (0, 5)), constant_values=-np.inf),
        np.pad(items_BKF, ((0, 0), (0, 5), (0, 0)), constant_values=3),
    )
    before = candidate_features(candidates_BK, scores_BK, items_BKF, history_BL, random_retrieval)
    after = candidate_features(*longer, history_BL, random_retrieval)
    np.testing.assert_allclose(after[:, :20], before, rtol=1e-5, atol=1e-6)
    assert (after[:, 20:] == 0).all()
