"""Candidate lists as of past moments: what retrieval would have offered, with features known then."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from data.features import ITEM_FEATURE_COLUMNS, counted_timeline, item_aggregates, item_features_at, with_sequence
from data.schema import COUNTED, EVENT_TIME, ITEM_ID, SEQUENCE, SPLIT, USER_ID
from data.splits import TRAIN
from train.histories import Histories
from train.models.candidate_features import Codes, Floats
from train.models.retrieval import RetrievalModel
from train.vocabulary import Vocabulary


class ItemFeatures:
    """Item features as of any moment in a data set's past. Only events of the train split count."""

    def __init__(self, events: pl.DataFrame, examples: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """`events`: the data set's events; `examples`: sequence and split of each."""
        split = examples.select(SEQUENCE, (pl.col(SPLIT) == TRAIN).alias(COUNTED))
        counted = with_sequence(events).join(split, on=SEQUENCE, how="left", maintain_order="left")
        self._timeline = item_aggregates(counted)
        self._counted = counted_timeline(counted)
        self._ids = pl.Series(ITEM_ID, ["", *vocabulary.items])

    def at(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        """Features (B, K, F) of K candidates as of B rows, in the order of `ITEM_FEATURE_COLUMNS`."""
        num_candidates = candidates_BK.shape[1]
        keys = pl.DataFrame(
            {
                ITEM_ID: self._ids.gather(candidates_BK.ravel()),
                SEQUENCE: np.repeat(rows[SEQUENCE].to_numpy(), num_candidates),
            }
        ).with_columns(rows[EVENT_TIME].gather(np.repeat(np.arange(rows.height), num_candidates)))
        features = item_features_at(self._timeline, self._counted, keys).select(ITEM_FEATURE_COLUMNS)
        return features.to_numpy().astype(np.float32).reshape(*candidates_BK.shape, -1)


@dataclass(frozen=True)
class Candidates:
    """What retrieval offers B users, with the features the ranker needs."""

    rows: pl.DataFrame
    """B feature rows."""
    codes_BK: Codes
    """Item codes, best first; `UNKNOWN` where the catalogue ran out."""
    scores_BK: Floats
    item_features_BKF: Floats


def find_candidates(
    retrieval: RetrievalModel, rows: pl.DataFrame, histories: Histories, items: ItemFeatures, count: int
) -> Candidates:
    """The `count` best unseen items for each of B example rows, as of the moment of each row."""
    exclude = histories.before(rows[USER_ID].to_list(), rows[SEQUENCE].to_list())
    codes_BK, scores_BK = retrieval.index.search(retrieval.encode_users(rows), count, exclude)
    return Candidates(rows, codes_BK, scores_BK, items.at(rows, codes_BK))
