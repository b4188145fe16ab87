"""Candidate lists as of past moments: what retrieval would have offered, with features known then."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.features import ALL_ACTIVITY, ITEM_FEATURE_COLUMNS, ITEM_POPULARITY, with_item_share
from data.schema import EVENT_TIME, ITEM_ID, ITEM_SHARE, SEQUENCE, SOURCE_ROW, USER_ID
from data.temporal.point_in_time import features_at
from train.histories import Histories
from train.models.candidate_features import Codes, Floats
from train.models.retrieval import RetrievalModel
from train.vocabulary import Vocabulary

OFFERED = dataclasses.replace(
    ITEM_POPULARITY,
    features={name: ITEM_POPULARITY.features[name] for name in ITEM_FEATURE_COLUMNS if name != ITEM_SHARE},
)
"""As much of the item view as ranking models read."""


class ItemFeatures:
    """Item features as of any moment in a data set's past."""

    def __init__(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """`events`: the data set's events."""
        self._events = events.sort(EVENT_TIME, SOURCE_ROW)
        self._by_item = events.sort(ITEM_ID, EVENT_TIME, SOURCE_ROW)
        self._ids = pl.Series(ITEM_ID, ["", *vocabulary.items])

    def at(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        """Features (B, K, F) of K candidates as of B rows, in the order of `ITEM_FEATURE_COLUMNS`."""
        moments = features_at(ALL_ACTIVITY, self._events, rows.select(EVENT_TIME, SOURCE_ROW))
        repeated = moments[np.repeat(np.arange(rows.height), candidates_BK.shape[1])]
        keys = repeated.with_columns(self._ids.gather(candidates_BK.ravel()))
        features = with_item_share(features_at(OFFERED, self._by_item, keys)).select(ITEM_FEATURE_COLUMNS)
        return features.to_numpy().astype(np.float32).reshape(*candidates_BK.shape, -1)


@dataclass(frozen=True)
class Candidates:
    """What retrieval offers B users, with the features the ranker needs."""

    rows: pl.DataFrame
    """B feature rows."""
    codes_BK: Codes
    """Item codes, best first; `UNKNOWN` where the catalogue ran out."""
    scores_BK: Floats
    """Of the first stage."""
    sources_BKS: Floats
    """Of every source, as `train.models.ensemble.Found`."""
    item_features_BKF: Floats


def find_candidates(
    retrieval: RetrievalModel, rows: pl.DataFrame, histories: Histories, items: ItemFeatures, count: int
) -> Candidates:
    """The `count` best unseen items for each of B example rows, as of the moment of each row."""
    exclude = histories.before(rows[USER_ID].to_list(), rows[SEQUENCE].to_list())
    found = retrieval.find(rows, exclude, count)
    return Candidates(rows, found.codes_BK, found.scores_BK, found.sources_BKS, items.at(rows, found.codes_BK))
