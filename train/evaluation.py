"""How good any `Recommender` is, with the protocol named beside every number.

`PROTOCOL` says how: it stands, with its hash, beside every figure.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from data.schema import ITEM_ID, SEQUENCE, SPLIT, USER_ID
from data.splits import LEAVE_ONE_OUT_PROTOCOL, TEST, protocol_hash
from train.candidates import ItemFeatures
from train.histories import Histories
from train.metrics import Ranks, items_shown, mrr, ndcg_at, ranks_of, recall_at
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.vocabulary import Vocabulary

Codes = npt.NDArray[np.int64]

USERS_AT_ONCE = 1024
PROTOCOL = (
    f"{LEAVE_ONE_OUT_PROTOCOL}; the full catalogue is ranked, with the items of the user's earlier events masked, so "
    "that an item met before counts as a miss"
)
"""How figures are measured, for people; its hash changes with every rule in it."""


class Recommender(Protocol):
    """Anything that ranks the catalogue for users at a moment."""

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """Item codes (B, K), best first, for B feature rows; none of those excluded for its row."""


class TwoTowerRecommender:
    """Retrieval alone."""

    def __init__(self, retrieval: RetrievalModel) -> None:
        self._retrieval = retrieval

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The items whose vectors are nearest to the user's."""
        return self._retrieval.index.search(self._retrieval.encode_users(rows), count, exclude)[0]


class RankedRecommender:
    """Retrieval, then the ranker over its first candidates; what lies behind them keeps the retrieval order."""

    def __init__(
        self, retrieval: RetrievalModel, ranking: RankingModel, items: ItemFeatures, num_candidates: int
    ) -> None:
        self._retrieval = retrieval
        self._ranking = ranking
        self._items = items
        self._num_candidates = num_candidates

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The candidates in the ranker's order, then the rest."""
        users_BD = self._retrieval.encode_users(rows)
        codes_BK, scores_BK = self._retrieval.index.search(users_BD, max(count, self._num_candidates), exclude)
        head_BK, head_scores_BK = codes_BK[:, : self._num_candidates], scores_BK[:, : self._num_candidates]
        features_BKF = self._items.at(rows, head_BK)
        logits_BK = self._ranking.score(rows, head_BK, head_scores_BK, features_BKF, self._retrieval)
        order_BK = np.argsort(-logits_BK, axis=1, kind="stable")
        reranked_BK = np.take_along_axis(head_BK, order_BK, axis=1)
        return np.concatenate([reranked_BK, codes_BK[:, self._num_candidates :]], axis=1)[:, :count]


class Evaluation(BaseModel):
    """Metrics by model, and how they were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    """The protocol in words."""
    protocol_hash: str
    """Its hash, tie rule included."""
    users: int
    """Users that were tested."""
    figures: dict[str, float]
    """`<metric>/<model>` to value."""


def evaluate(recommenders: Mapping[str, Recommender], examples: pl.DataFrame, vocabulary: Vocabulary) -> Evaluation:
    """Recall@10, NDCG@10, MRR and coverage@10 of each recommender on the test events of `examples`."""
    rows = examples.filter(pl.col(SPLIT) == TEST)
    exclude = Histories(examples, vocabulary).before(rows[USER_ID].to_list(), rows[SEQUENCE].to_list())
    targets_B = vocabulary.encode_items(rows[ITEM_ID])
    figures: dict[str, float] = {}
    for name, recommender in recommenders.items():
        ranks, shown = _rank(recommender, rows, exclude, targets_B, vocabulary.num_items)
        figures[f"recall@10/{name}"] = recall_at(ranks, 10)
        figures[f"ndcg@10/{name}"] = ndcg_at(ranks, 10)
        figures[f"mrr/{name}"] = mrr(ranks)
        figures[f"coverage@10/{name}"] = len(shown) / vocabulary.num_items
    return Evaluation(protocol=PROTOCOL, protocol_hash=protocol_hash(PROTOCOL), users=rows.height, figures=figures)


def _rank(
    recommender: Recommender, rows: pl.DataFrame, exclude: list[Codes], targets_B: Codes, num_items: int
) -> tuple[Ranks, set[int]]:
    """The place of every target, and the items in anybody's first ten; some users at a time, to bound the memory."""
    ranks: list[Ranks] = []
    shown: set[int] = set()
    for start in range(0, rows.height, USERS_AT_ONCE):
        some = slice(start, start + USERS_AT_ONCE)
        ranked_BK = recommender.recommend(rows[some], exclude[some], num_items)
        ranks.append(ranks_of(targets_B[some], ranked_BK))
        shown |= items_shown(ranked_BK, 10)
    return np.concatenate(ranks), shown
