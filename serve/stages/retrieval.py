"""Finds candidates: the items whose vectors are nearest to the user's."""

import dataclasses

from serve.batch import Batch
from serve.eligibility import Eligibility, RulesConfig
from serve.variant import Variant


class Retrieval:
    """User tower and index of one variant."""

    def __init__(self, variant: Variant, candidates: int, rules: RulesConfig | None = None) -> None:
        self._variant = variant
        self._eligibility = Eligibility(variant.catalogue, rules or RulesConfig())
        self._candidates = candidates

    def run(self, batch: Batch) -> Batch:
        """Candidates, best first; so many more than asked for that the filter cannot run out of them."""
        vectors_BD = self._variant.encode_users(batch.users)
        count = self._eligibility.width(batch, self._candidates)
        codes_BK, scores_BK = self._variant.search(vectors_BD, count)
        return dataclasses.replace(batch, codes_BK=codes_BK, retrieval_BK=scores_BK)
