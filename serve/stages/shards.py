"""Retrieval from a catalogue that is divided among deployments: what each shard does, and what is made of all.

An item belongs to the shard that its id hashes to. Shards are deployments, each with replicas of its own, and not the
ranks of one: Ray Serve tells a replica its rank, but whoever asks cannot choose a rank, and a replica's may change.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serve.batch import Batch
from serve.eligibility import Eligibility, RulesConfig
from serve.stages.retrieval import with_candidates
from serve.steps import RemoteCall
from serve.variant import Variant
from train.models.ensemble import Run
from train.models.shards import Nominated


class RetrievalShard:
    """Names the items of one shard that may be candidates."""

    def __init__(
        self, variant: Variant, candidates: int, rules: RulesConfig | None = None, *, number: int, shards: int
    ) -> None:
        self._shard = variant.shard(number, shards)
        self._eligibility = Eligibility(variant.catalogue, rules or RulesConfig())
        self._candidates = candidates
        several = variant.num_scorers > 1
        self._run: Run = ThreadPoolExecutor(variant.num_scorers, thread_name_prefix="source").map if several else map

    def run(self, batch: Batch) -> Batch:
        """A batch of what the shard nominates: `codes_BK`, and `sources_BKS` by every source, the two-tower first."""
        exclude = self._eligibility.excluded(batch)
        count = self._eligibility.candidates(self._candidates)
        nominated = self._shard.nominate(batch.users, exclude, count, self._run)
        return Batch(batch.calls, batch.at, codes_BK=nominated.codes_BN, sources_BKS=nominated.scores_BNS)


class Election:
    """Makes what `Retrieval` would have answered of what all shards nominate."""

    def __init__(self, variant: Variant, candidates: int, rules: RulesConfig | None = None) -> None:
        self._variant = variant
        self._eligibility = Eligibility(variant.catalogue, rules or RulesConfig())
        self._candidates = candidates

    def merge(self, batch: Batch, answers: Sequence[Batch]) -> Batch:
        """`batch` with its candidates, best first."""
        nominated = []
        for answer in answers:
            assert answer.sources_BKS is not None
            nominated.append(Nominated(answer.codes_BK, answer.sources_BKS))
        found = self._variant.elect(nominated, self._eligibility.candidates(self._candidates))
        return with_candidates(batch, found, self._variant.finders)


def sharded(shards: Sequence[RemoteCall], election: Election) -> RemoteCall:
    """Asks every shard once for a batch, all at the same time. No answer can do without any of them."""

    async def call(batch: Batch) -> Batch:
        asked = [asyncio.ensure_future(shard(batch)) for shard in shards]
        try:
            answers = await asyncio.gather(*asked)
        finally:
            for each in asked:
                each.cancel()
        return await asyncio.to_thread(election.merge, batch, answers)

    return call
