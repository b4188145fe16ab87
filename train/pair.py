"""The trained pair as recommenders: retrieval alone, and retrieval with the ranker behind it."""

import numpy as np
import polars as pl

from train.candidates import ItemFeatures
from train.index import Codes, Floats
from train.models.ensemble import Found
from train.models.lightgbm_ranker import LightGBMRanking
from train.models.ranker import RankerInputs
from train.models.ranking import RankingModel, ranker_inputs
from train.models.retrieval import RetrievalModel
from train.recommender import Recommends
from train.vocabulary import UNKNOWN, Vocabulary


class TwoTowerRecommender:
    """Retrieval alone."""

    def __init__(self, retrieval: RetrievalModel) -> None:
        self._retrieval = retrieval

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The items whose vectors are nearest to the user's."""
        return self._retrieval.index.search(self._retrieval.encode_users(rows), count, exclude)[0]


class Recoded:
    """A recommender that is asked in the item codes of another vocabulary; items unknown there are no answer."""

    def __init__(self, recommender: Recommends, own: Vocabulary, asked: Vocabulary) -> None:
        """`own`: the vocabulary of `recommender`; `asked`: the one of whoever asks."""
        self._recommender = recommender
        self._own_I = np.concatenate([[UNKNOWN], own.encode_items(pl.Series(asked.items, dtype=pl.String))])
        self._asked_I = np.concatenate([[UNKNOWN], asked.encode_items(pl.Series(own.items, dtype=pl.String))])

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """What the recommender gives, in the other's codes."""
        own = [codes[codes != UNKNOWN] for codes in (self._own_I[codes] for codes in exclude)]
        recoded: Codes = self._asked_I[self._recommender.recommend(rows, own, count)]
        return recoded


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
        found = self._retrieval.find(rows, exclude, max(count, self._num_candidates))
        head_BK, ranked_BK = self._ranked(rows, found)
        order_BK = np.argsort(-ranked_BK, axis=1, kind="stable")
        reranked_BK = np.take_along_axis(head_BK, order_BK, axis=1)
        return np.concatenate([reranked_BK, found.codes_BK[:, self._num_candidates :]], axis=1)[:, :count]

    def score(self, rows: pl.DataFrame, exclude: list[Codes]) -> tuple[Codes, Floats]:
        """The candidates (B, K) in retrieval order, and the ranker's scores of them (B, K)."""
        return self._ranked(rows, self._retrieval.find(rows, exclude, self._num_candidates))

    def lists(self, rows: pl.DataFrame, exclude: list[Codes]) -> RankerInputs:
        """What the ranker reads of the candidates, which are in retrieval order."""
        found = self._retrieval.find(rows, exclude, self._num_candidates)
        lists_BK = found.codes_BK, found.scores_BK, self._items.at(rows, found.codes_BK)
        return ranker_inputs(rows, *lists_BK, self._retrieval, sources_BKS=found.sources_BKS)

    def _ranked(self, rows: pl.DataFrame, found: Found) -> tuple[Codes, Floats]:
        """The first of the found items, which are the candidates, and the ranker's scores of them."""
        head = slice(None), slice(self._num_candidates)
        codes_BK, scores_BK, sources_BKS = found.codes_BK[head], found.scores_BK[head], found.sources_BKS[head]
        features_BKF = self._items.at(rows, codes_BK)
        ranked_BK = self._ranking.score(
            rows, codes_BK, scores_BK, features_BKF, self._retrieval, sources_BKS=sources_BKS
        )
        return codes_BK, ranked_BK
