"""The trained pair as recommenders: retrieval alone, and retrieval with the ranker behind it."""

import numpy as np
import polars as pl

from train.candidates import ItemFeatures
from train.index import Codes, Floats
from train.models.lightgbm_ranker import LightGBMRanking
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel


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
        self,
        retrieval: RetrievalModel,
        ranking: RankingModel | LightGBMRanking,
        items: ItemFeatures,
        num_candidates: int,
    ) -> None:
        self._retrieval = retrieval
        self._ranking = ranking
        self._items = items
        self._num_candidates = num_candidates

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The candidates in the ranker's order, then the rest."""
        codes_BK, logits_BK = self._search(rows, exclude, max(count, self._num_candidates))
        head_BK = codes_BK[:, : self._num_candidates]
        order_BK = np.argsort(-logits_BK, axis=1, kind="stable")
        reranked_BK = np.take_along_axis(head_BK, order_BK, axis=1)
        return np.concatenate([reranked_BK, codes_BK[:, self._num_candidates :]], axis=1)[:, :count]

    def score(self, rows: pl.DataFrame, exclude: list[Codes]) -> tuple[Codes, Floats]:
        """The candidates (B, K) in retrieval order and the ranker's scores for them."""
        return self._search(rows, exclude, self._num_candidates)

    def _search(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> tuple[Codes, Floats]:
        """`count` codes in retrieval order, and the ranker's scores for the candidates, which are the first of them."""
        found = self._retrieval.find(rows, exclude, count)
        head = slice(None), slice(self._num_candidates)
        codes_BK, scores_BK, sources_BKS = found.codes_BK[head], found.scores_BK[head], found.sources_BKS[head]
        features_BKF = self._items.at(rows, codes_BK)
        logits_BK = self._ranking.score(
            rows, codes_BK, scores_BK, features_BKF, self._retrieval, sources_BKS=sources_BKS
        )
        return found.codes_BK, logits_BK
