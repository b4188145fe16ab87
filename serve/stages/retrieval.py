"""Finds candidates: several sources at once, of which the two-tower is one; all of them say what they think of each."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve.batch import Batch
from serve.eligibility import Eligibility, RulesConfig
from serve.variant import Variant
from train.models.ensemble import Found, Run


class Retrieval:
    """User tower and index of one variant, and the sources beside them, each in a thread of its own."""

    def __init__(self, variant: Variant, candidates: int, rules: RulesConfig | None = None) -> None:
        self._variant = variant
        variant.choose_index()
        self._eligibility = Eligibility(variant.catalogue, rules or RulesConfig())
        self._candidates = candidates
        # A single source is asked where it is: handing it to a thread would cost more than it takes.
        several = variant.num_scorers > 1
        self._run: Run = ThreadPoolExecutor(variant.num_scorers, thread_name_prefix="source").map if several else map

    def run(self, batch: Batch) -> Batch:
        """Candidates, best first. What may not be shown is left out: a source's places count what may.

        Where rules limit how many items of a kind an answer has, there are more, so that the filter has a choice.
        """
        exclude = self._eligibility.excluded(batch)
        count = self._eligibility.candidates(self._candidates)
        return with_candidates(batch, self._variant.find(batch.users, exclude, count, self._run), self._variant.finders)


def with_candidates(batch: Batch, found: Found, finders: Sequence[str]) -> Batch:
    """The batch with the candidates that these finders have found."""
    return dataclasses.replace(
        batch,
        codes_BK=found.codes_BK,
        retrieval_BK=found.scores_BK,
        sources_BKS=found.sources_BKS,
        named_by=tuple(dict(zip(finders, row, strict=True)) for row in found.named_BN.tolist()),
    )
