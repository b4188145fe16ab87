"""Thin Ray Serve wrappers: one class per stage, for the stages that get replicas of their own.

Nothing here imports torch: a replica of the language model has no use for it. Every batch says by which variant it is
answered, so that no answer is made of two, whichever of them each replica took up first.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.batch import Batch, Stage
from serve.config import AppConfig
from serve.generation import Piece, Question, Writer
from serve.graph import StageName
from serve.loading import Parts, explain_stage, make_first, rerank_stage
from serve.reranking_policy import RerankingPolicy

KEPT_VARIANTS = 2
"""The one that answers, and the one that comes or goes."""


class StageReplica:
    """Base of the remote stages that belong to a variant: asked for whole batches."""

    name: StageName

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._settings = settings
        self._config = config
        first = make_first(settings, config, self._make)
        self._ready: dict[str, Stage] = {first.serving: first.made}
        """The least recently used first."""
        self._coming: dict[str, asyncio.Task[Stage]] = {}

    async def run(self, batch: Batch, variant: str) -> Batch:
        """The stage's answer, computed in a thread so that the replica goes on answering health checks.

        Raises TowerlineError if the variant was not there before the caller gave up.
        """
        deadline = time.monotonic() + batch.budget_s
        stage = await self._stage(variant)
        if time.monotonic() > deadline:
            raise TowerlineError(f"variant {variant} was loaded after {batch.budget_s:.3f} s, too late for the batch")
        return await asyncio.to_thread(stage.run, batch)

    async def prepare(self, variant: str) -> None:
        """Have a variant ready before the first batch of it comes. Raises TowerlineError if it cannot be loaded."""
        await self._stage(variant)

    async def _stage(self, variant: str) -> Stage:
        if variant not in self._ready:
            if variant not in self._coming:
                self._coming[variant] = asyncio.create_task(asyncio.to_thread(self._make, variant))
                self._coming[variant].add_done_callback(lambda _: self._coming.pop(variant))
            return self._keep(variant, await asyncio.shield(self._coming[variant]))
        return self._keep(variant, self._ready[variant])

    def _keep(self, variant: str, stage: Stage) -> Stage:
        self._ready.pop(variant, None)
        self._ready[variant] = stage
        while len(self._ready) > KEPT_VARIANTS:
            del self._ready[next(iter(self._ready))]
        return stage

    def _make(self, variant: str) -> Stage:
        return Parts(self._settings, self._config, variant).stage(self.name)


class FeaturesReplica(StageReplica):
    """Reads user features."""

    name = "features"


class RetrievalReplica(StageReplica):
    """Finds candidates."""

    name = "retrieval"


class FilterReplica(StageReplica):
    """Drops what was seen."""

    name = "filter"


class RankingReplica(StageReplica):
    """Orders candidates."""

    name = "ranking"


class DiversityReplica(StageReplica):
    """Puts unlike items first."""

    name = "diversity"


class LanguageModelReplica:
    """Base of the stages of the language model, which may be without a replica for a while."""

    async def ready(self) -> None:
        """Answered as soon as there is a replica."""


class ExplainReplica(LanguageModelReplica):
    """Runs the language model, which is the same for every variant, for explanations and completions."""

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._stage = explain_stage(config, beside=config.completions.parallel)
        self._writer = Writer(self._stage.llama, config.completions)

    async def run(self, batch: Batch, variant: str) -> Batch:
        """The sentences, written in a thread so that the replica goes on answering health checks."""
        return await asyncio.to_thread(self._stage.run, batch)

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion (`serve.generation.LanguageModel`)."""
        async with aclosing(self._writer.write(question)) as pieces:
            async for piece in pieces:
                yield piece


class RerankReplica(LanguageModelReplica):
    """Re-ranks by the language model, which is the same for every variant."""

    def __init__(self, settings: Settings, config: AppConfig, policy: RerankingPolicy) -> None:
        self._stage = rerank_stage(config, policy)

    async def run(self, batch: Batch, variant: str) -> Batch:
        """The order, found in a thread so that the replica goes on answering health checks."""
        return await asyncio.to_thread(self._stage.run, batch)


REPLICAS: Mapping[StageName, type[StageReplica] | type[ExplainReplica] | type[RerankReplica]] = {
    **{
        replica.name: replica
        for replica in (FeaturesReplica, RetrievalReplica, FilterReplica, RankingReplica, DiversityReplica)
    },
    "rerank": RerankReplica,
    "explain": ExplainReplica,
}
