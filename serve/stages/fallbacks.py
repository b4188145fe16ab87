"""What takes the place of a stage that cannot answer in time: less good, from what is at hand, and at once."""

import dataclasses

import numpy as np

from serve.batch import Batch
from serve.eligibility import Eligibility, RulesConfig
from serve.variant import Catalogue, Variant


class Popularity:
    """Instead of retrieval: the items that most of the model's training events chose, for everybody alike."""

    def __init__(self, variant: Variant, candidates: int, rules: RulesConfig | None = None) -> None:
        self._variant = variant
        self._eligibility = Eligibility(variant.catalogue, rules or RulesConfig())
        self._candidates = candidates

    def run(self, batch: Batch) -> Batch:
        """Candidates, best first; so many more than asked for that the filter cannot run out of them."""
        codes_K, scores_K = self._variant.popular(self._eligibility.width(batch, self._candidates))
        shape = (len(batch), len(codes_K))
        return dataclasses.replace(
            batch, codes_BK=np.broadcast_to(codes_K, shape), retrieval_BK=np.broadcast_to(scores_K, shape)
        )


class RetrievalOrder:
    """Instead of ranking: the candidates by their retrieval scores, which then are the scores of the answer."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def run(self, batch: Batch) -> Batch:
        """Sort as ranking does. The item features stay unknown."""
        order_BK = self._catalogue.best_first(batch.retrieval_BK, batch.codes_BK)
        retrieval_BK = np.take_along_axis(batch.retrieval_BK, order_BK, axis=1)
        codes_BK = np.take_along_axis(batch.codes_BK, order_BK, axis=1)
        return dataclasses.replace(batch, codes_BK=codes_BK, retrieval_BK=retrieval_BK, scores_BK=retrieval_BK)


class RankersOrder:
    """Instead of re-ranking: the order that there is, without what another one would have been found by."""

    def run(self, batch: Batch) -> Batch:
        """The batch without profiles, as of users who are not re-ranked."""
        return dataclasses.replace(batch, profiles=())


class Unchanged:
    """Instead of diversity: the order that there is."""

    def run(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch
