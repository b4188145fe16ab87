"""Thin Ray Serve wrappers: one class per stage, for the stages that get replicas of their own.

Nothing here imports torch: a replica of the language model has no use for it. Every batch says by which variant, with
which new items, it is answered, so that no answer is made of two, whichever of them each replica took up first.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.batch import Batch, Stage
from serve.config import AppConfig
from serve.edition import Edition
from serve.generation import Piece, Question, Writer
from serve.graph import StageName
from serve.loading import Parts, Trained, explain_stage, make_first, rerank_stage
from serve.reranking_policy import RerankingPolicy
from serve.stages.explain import EXAMPLES
from serve.vllm.server import VllmServer
from serve.vllm.writer import VllmExplain, VllmWriter

KEPT_EDITIONS = 2
"""The one that answers, and the one that comes or goes."""


class StageReplica:
    """Base of the remote stages that belong to a variant: asked for whole batches."""

    name: StageName

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._settings = settings
        self._config = config
        self._trained = Trained(settings, config)
        edition, stage = make_first(settings, config, self._make_newest).made
        self._ready: dict[Edition, Stage] = {edition: stage}
        """The least recently used first."""
        self._coming: dict[Edition, asyncio.Task[Stage]] = {}

    async def run(self, batch: Batch, edition: Edition) -> Batch:
        """The stage's answer, computed in a thread so that the replica goes on answering health checks.

        Raises TowerlineError if the edition was not there before the caller gave up.
        """
        deadline = time.monotonic() + batch.budget_s
        stage = await self._stage(edition)
        if time.monotonic() > deadline:
            raise TowerlineError(f"variant {edition} was loaded after {batch.budget_s:.3f} s, too late for the batch")
        return await asyncio.to_thread(stage.run, batch)

    async def prepare(self, edition: Edition) -> None:
        """Have an edition ready before the first batch of it comes. Raises TowerlineError if it cannot be loaded."""
        await self._stage(edition)

    async def _stage(self, edition: Edition) -> Stage:
        if edition not in self._ready:
            if edition not in self._coming:
                self._coming[edition] = asyncio.create_task(asyncio.to_thread(self._make, edition))
                self._coming[edition].add_done_callback(lambda _: self._coming.pop(edition))
            return self._keep(edition, await asyncio.shield(self._coming[edition]))
        return self._keep(edition, self._ready[edition])

    def _keep(self, edition: Edition, stage: Stage) -> Stage:
        self._ready.pop(edition, None)
        self._ready[edition] = stage
        while len(self._ready) > KEPT_EDITIONS:
            del self._ready[next(iter(self._ready))]
        return stage

    def _make(self, edition: Edition) -> Stage:
        return self._stage_of(self._parts(edition.variant, edition.new_items))

    def _make_newest(self, variant: str) -> tuple[Edition, Stage]:
        parts = self._parts(variant)
        return parts.edition, self._stage_of(parts)

    def _stage_of(self, parts: Parts) -> Stage:
        return parts.stage(self.name)

    def _parts(self, variant: str, new_items: str | None = None) -> Parts:
        return Parts(self._settings, self._config, variant, new_items=new_items, trained=self._trained)


class FeaturesReplica(StageReplica):
    """Reads user features."""

    name = "features"


class RetrievalReplica(StageReplica):
    """Finds candidates."""

    name = "retrieval"


class RetrievalShardReplica(StageReplica):
    """Finds candidates in its shard of the catalogue."""

    name = "retrieval"

    def __init__(self, settings: Settings, config: AppConfig, number: int) -> None:
        """`number`: of the shard, from 0."""
        self._number = number
        super().__init__(settings, config)

    def _stage_of(self, parts: Parts) -> Stage:
        return parts.shard(self._number)


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

    async def run(self, batch: Batch, edition: Edition) -> Batch:
        """The sentences, written in a thread so that the replica goes on answering health checks."""
        return await asyncio.to_thread(self._stage.run, batch)

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion (`serve.generation.LanguageModel`)."""
        async with aclosing(self._writer.write(question)) as pieces:
            async for piece in pieces:
                yield piece


class VllmExplainReplica(LanguageModelReplica):
    """`ExplainReplica` with vLLM instead of llama.cpp, on a node with GPUs. Not run here: there is no GPU."""

    async def __init__(self, settings: Settings, config: AppConfig) -> None:  # type: ignore[misc] # Serve awaits it
        """Load the model and write a first sentence. Raises TowerlineError if the node has no vLLM."""
        vllm, explain, completions = config.explain.on_gpus, config.explain, config.completions
        assert vllm is not None
        parallel = explain.parallel + completions.parallel
        self._server = await VllmServer.start(vllm.llm_config(context=explain.context, parallel=parallel))
        self._writer = VllmWriter(self._server.chunks, vllm.name, completions)
        self._stage = VllmExplain(self._server.chunks, vllm.name, explain)
        await self._stage.explain(EXAMPLES[0][0])

    async def run(self, batch: Batch, edition: Edition) -> Batch:
        """The sentences."""
        return await self._stage.run(batch)

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion (`serve.generation.LanguageModel`)."""
        async with aclosing(self._writer.write(question)) as pieces:
            async for piece in pieces:
                yield piece

    async def check_health(self) -> None:
        """Called by Serve: a replica whose engine has died is replaced."""
        await self._server.check_health()


class RerankReplica(LanguageModelReplica):
    """Re-ranks by the language model, which is the same for every variant."""

    def __init__(self, settings: Settings, config: AppConfig, policy: RerankingPolicy) -> None:
        self._stage = rerank_stage(config, policy)

    async def run(self, batch: Batch, edition: Edition) -> Batch:
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
