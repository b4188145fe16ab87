"""The ranker's dense features of a candidate, computed by the same code when training and when serving."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from data.features import ITEM_FEATURE_COLUMNS
from data.fingerprints import fingerprint
from data.schema import ITEM_SHARE, USER_EVENT_COUNT, USER_MEAN_VALUE, USER_SECONDS_SINCE_LAST
from train.encoding import MAX_ATTRIBUTES, encode_users
from train.models.blending import places_of
from train.models.covisitation import COVISITATION_PARAMETERS, covisitation_of, fit_covisitation
from train.models.retrieval import RetrievalModel
from train.models.sources import SOURCES, scoring_fingerprint
from train.models.two_tower import AGE_BINS, age_bin
from train.vocabulary import UNKNOWN

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

USER_FEATURES = ("log_event_count", "mean_value", "log_seconds_since_last")
CANDIDATE_FEATURES = (
    "retrieval_score",
    "log_retrieval_rank",
    "item_log_event_count",
    "item_mean_value",
    "item_log_share",
    "item_log_seconds_since_last",
    "similarity_to_last",
    "similarity_to_last_5",
    "highest_similarity",
    "log_covisitation",
)
RETRIEVAL_SCORE = CANDIDATE_FEATURES.index("retrieval_score")
"""Standardised within each list, so that it means the same for any retrieval model."""

SOURCE_FEATURES = ("score", "log_rank")
"""Of each source: its score, standardised within each list, and log2(1 + its place among the candidates)."""

RECENT = 5
SHARE_UNIT = 1e-5
COVISITATION_UNIT = 1e-3


def ranker_fingerprints(sources: Iterable[str] = tuple(SOURCES)) -> dict[str, str]:
    """Fingerprints of what the ranker computes by itself from features (see `data.features.feature_fingerprints`).

    `sources`: whose scores it reads, all that there are by default.
    """
    names = {"user": USER_FEATURES, "candidate": CANDIDATE_FEATURES, "source": SOURCE_FEATURES}
    encoding = {"age_bins": AGE_BINS, "max_attributes": MAX_ATTRIBUTES, "unknown": UNKNOWN}
    units = {"recent": RECENT, "share_unit": SHARE_UNIT, "covisitation_unit": COVISITATION_UNIT}
    return {
        "candidate_features": fingerprint(
            user_features, candidate_features, source_features, places_of, **names, **units
        ),
        "history_encoding": fingerprint(encode_users, age_bin, **encoding),
        "covisitation": fingerprint(fit_covisitation, covisitation_of, **COVISITATION_PARAMETERS),
        **{f"source {name}": scoring_fingerprint(name) for name in sources},
    }


def feature_names(scored_by: Sequence[str]) -> tuple[str, ...]:
    """The dense features of a candidate that these sources score, in order."""
    return (*CANDIDATE_FEATURES, *(f"{source}_{feature}" for source in scored_by for feature in SOURCE_FEATURES))


def user_features(rows: pl.DataFrame) -> Floats:
    """Dense features (B, F) of B feature rows, in the order of `USER_FEATURES`."""
    return _stack(
        np.log1p(rows[USER_EVENT_COUNT].to_numpy()),
        rows[USER_MEAN_VALUE].to_numpy(),
        np.log1p(rows[USER_SECONDS_SINCE_LAST].to_numpy()),
    )


def candidate_features(
    candidates_BK: Codes,
    scores_BK: Floats,
    item_features_BKF: Floats,
    history_BL: Codes,
    retrieval: RetrievalModel,
) -> Floats:
    """Dense features (B, K, F) of K candidates, in the order of `CANDIDATE_FEATURES`.

    `scores_BK`: first-stage scores, best first, -inf where there is no candidate. `item_features_BKF`: in the order of
    `data.features.ITEM_FEATURE_COLUMNS`. `history_BL`: item codes of the user's last events, newest last.
    The codes are those of `retrieval`, which found the candidates.
    """
    present_BK = candidates_BK != UNKNOWN
    count, mean, share, seconds = np.moveaxis(item_features_BKF, 2, 0)
    assert ITEM_FEATURE_COLUMNS[2] == ITEM_SHARE
    last, last_5, highest = _similarities(candidates_BK, history_BL, retrieval.item_directions_ID)
    covisitation_BK = covisitation_of(retrieval.covisitation, history_BL, candidates_BK)
    ranks_BK = np.broadcast_to(np.log2(1 + np.arange(1, candidates_BK.shape[1] + 1)), candidates_BK.shape)
    features_BKF = _stack(
        _standardized_rows(scores_BK, present_BK),
        ranks_BK,
        np.log1p(count),
        mean,
        np.log1p(share / SHARE_UNIT),
        np.log1p(seconds),
        last,
        last_5,
        highest,
        np.log(covisitation_BK + COVISITATION_UNIT),
    )
    return np.where(present_BK[:, :, np.newaxis], features_BKF, np.float32(0))


def source_features(candidates_BK: Codes, sources_BKS: Floats) -> Floats:
    """Dense features (B, K, 2 S) of K candidates: `SOURCE_FEATURES` of each source that scores them.

    What a source cannot tell apart shares a place, the last one. 0 where there is no candidate.
    """
    present_BK = candidates_BK != UNKNOWN
    features_BKF = np.zeros((*candidates_BK.shape, 2 * sources_BKS.shape[2]), dtype=np.float32)
    for source, scores_BK in enumerate(np.moveaxis(sources_BKS, 2, 0)):
        features_BKF[:, :, 2 * source] = _standardized_rows(scores_BK, present_BK)
        features_BKF[:, :, 2 * source + 1] = np.where(present_BK, np.log2(1 + places_of(scores_BK)), 0)
    return features_BKF


def _similarities(candidates_BK: Codes, history_BL: Codes, vectors_ID: Floats) -> tuple[Floats, Floats, Floats]:
    """Cosine of each candidate to the last item, to the mean of the last few, and to the nearest in the history."""
    present_BL = history_BL != UNKNOWN
    cosines_BKL = vectors_ID[candidates_BK] @ (vectors_ID[history_BL] * present_BL[:, :, np.newaxis]).swapaxes(1, 2)
    recent = np.maximum(present_BL[:, -RECENT:].sum(axis=1), 1)[:, np.newaxis]
    return cosines_BKL[:, :, -1], cosines_BKL[:, :, -RECENT:].sum(axis=2) / recent, cosines_BKL.max(axis=2)


def _standardized_rows(scores_BK: Floats, present_BK: npt.NDArray[np.bool_]) -> Floats:
    filled_BK = np.where(present_BK, scores_BK, 0).astype(np.float64)
    count_B1 = np.maximum(present_BK.sum(axis=1, keepdims=True), 1)
    mean_B1 = filled_BK.sum(axis=1, keepdims=True) / count_B1
    centred_BK = np.where(present_BK, filled_BK - mean_B1, 0)
    deviation_B1 = np.sqrt((centred_BK**2).sum(axis=1, keepdims=True) / count_B1)
    standardized: Floats = (centred_BK / np.maximum(deviation_B1, 1e-6)).astype(np.float32)
    return standardized


def _stack(*columns: npt.NDArray[np.generic]) -> Floats:
    return np.stack(columns, axis=-1).astype(np.float32)
