"""Finds candidates: the items whose vectors are nearest to the user's."""

import dataclasses

from serve.batch import Batch
from serve.variant import Variant


class Retrieval:
    """User tower and index of one variant."""

    def __init__(self, variant: Variant, candidates: int) -> None:
        self._variant = variant
        self._candidates = candidates

    def run(self, batch: Batch) -> Batch:
        """Candidates, best first; so many more than asked for that the filter cannot run out of them."""
        vectors_BD = self._variant.encode_users(batch.users)
        count = self._candidates + max(map(len, batch.seen), default=0)
        codes_BK, scores_BK = self._variant.search(vectors_BD, count)
        return dataclasses.replace(batch, codes_BK=codes_BK, retrieval_BK=scores_BK)
