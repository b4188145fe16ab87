"""How the stages are composed: each edge is a call in this process or one handle call per micro-batch to a deployment.

The stages up to the ranking are run for all requests that wait at the same moment. Neighbouring in-process stages are
fused: the batch passes through them in one go. What the language model does comes after that, re-ranking for cold
users and sentences for those who asked for them, and nobody else waits for it.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import TowerlineError
from data.schema import USER_EVENT_COUNT
from serve.batch import Batch, Call, Stage
from serve.batcher import MicroBatcher

logger = logging.getLogger(__name__)

Edge = Literal["in_process", "remote"]
StageName = Literal["features", "retrieval", "filter", "ranking", "profile", "rerank", "facts", "explain"]
RANKED: tuple[StageName, ...] = ("features", "retrieval", "filter", "ranking")
"""The stages that every answer needs, in order."""
RERANKED: tuple[StageName, ...] = ("profile", "rerank")
"""The stages that re-rank for cold users."""
EXPLAINED: tuple[StageName, ...] = ("facts", "explain")
"""The stages that add the sentences."""


class GraphConfig(BaseModel):
    """Where each stage runs, and the widths of the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: Edge = "in_process"
    retrieval: Edge = "in_process"
    filter: Edge = "in_process"
    ranking: Edge = "in_process"
    rerank: Edge | Literal["off"] = "off"
    """Where the language model re-ranks for cold users, if an evaluation has found that it helps
    (`serve.reranking_policy`). Gathering what it re-ranks by always happens in process."""
    explain: Edge = "remote"
    """Gathering the facts for it always happens in process."""

    candidates: int = Field(default=100, ge=1, le=10_000)
    """Items that retrieval hands to the ranker, after those already seen are left out."""

    max_batch_size: int = Field(default=64, ge=1)
    """Most requests that are answered together."""

    batches_in_flight: int = Field(default=1, ge=1)
    """Batches under way at once. One lets batches grow with load; more pays only where remote stages overlap."""

    explained_items: int = Field(default=3, ge=1, le=10)
    """How many of the first items come with a sentence, when sentences are asked for."""

    rerank_timeout_s: float = Field(default=3.0, gt=0)
    """After this many seconds an answer goes out in the ranker's order."""

    explain_timeout_s: float = Field(default=15.0, gt=0)
    """After this many seconds an answer goes out without its sentences."""

    def remote(self) -> tuple[StageName, ...]:
        """The stages with a deployment of their own."""
        names: tuple[StageName, ...] = (*RANKED, "rerank", "explain")
        return tuple(name for name in names if getattr(self, name) == "remote")

    def in_process(self) -> tuple[StageName, ...]:
        """The stages that live in the gateway's replicas."""
        reranked = () if self.rerank == "off" else RERANKED
        return tuple(name for name in (*RANKED, *reranked, *EXPLAINED) if name not in self.remote())


class StageUnavailableError(Exception):
    """A remote stage did not answer; raised by its `RemoteCall`."""


RemoteCall = Callable[[Batch], Awaitable[Batch]]
"""One call of a remote stage with a whole micro-batch. Raises `StageUnavailableError`."""


@dataclass(frozen=True)
class Outcome:
    """One request's share of an answered batch: `batch` has a single row."""

    batch: Batch
    degraded: tuple[StageName, ...]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class _Ranked:
    batch: Batch
    row: int
    started: float
    reranked: "asyncio.Task[Batch | None] | None"
    """None if the call's user is not cold."""
    explained: "asyncio.Task[Batch | None] | None"
    """None if the call wants no sentences."""


def run_stages(stages: Sequence[tuple[str, Stage]], batch: Batch) -> Batch:
    """Run stages one after the other in this process and note the milliseconds of each. Synchronous, without Ray."""
    for name, stage in stages:
        start = time.perf_counter()
        batch = _timed(stage.run(batch), name, start)
    return batch


def _share_of(calls: Sequence[Call], batch: Batch) -> Batch:
    """The rows of some of a batch's calls."""
    ids = [each.decision_id for each in batch.calls]
    return batch.select([ids.index(call.decision_id) for call in calls])


def _timed(batch: Batch, name: str, start: float) -> Batch:
    spent = (time.perf_counter() - start) * 1e3
    return dataclasses.replace(batch, timings_ms={**batch.timings_ms, name: spent})


class Graph:
    """Answers requests through the composed stages. Belongs to one event loop."""

    def __init__(
        self,
        config: GraphConfig,
        stages: Mapping[StageName, Stage],
        remote: Mapping[StageName, RemoteCall],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rerank_below: int = 0,
    ) -> None:
        """`stages` holds the in-process stages of `config`, `remote` the others. `clock` gives the time in UTC.

        Users of whom fewer than `rerank_below` events are known are cold.
        """
        self._config = config
        self._clock = clock
        self._rerank_below = 0 if config.rerank == "off" else rerank_below
        self._workers: list[ThreadPoolExecutor] = []
        self._steps = self._compose(RANKED, stages, remote)
        self._reranking = self._compose(RERANKED, stages, remote) if self._rerank_below else []
        self._explaining = self._compose(EXPLAINED, stages, remote)
        self._batcher = MicroBatcher(self._rank, config.max_batch_size, config.batches_in_flight)

    async def recommend(self, call: Call) -> Outcome:
        """Answer one request. Raises `StageUnavailableError` when a stage that every answer needs is gone."""
        arrived = time.perf_counter()
        ranked = await self._batcher.submit(call)
        timings = {"queue": (ranked.started - arrived) * 1e3, **ranked.batch.timings_ms}
        degraded: list[StageName] = []
        batch = ranked.batch.select([ranked.row])
        if ranked.reranked is not None:
            reranked = await asyncio.shield(ranked.reranked)
            if reranked is None:
                degraded.append("rerank")
            else:
                batch = _share_of([call], reranked)
                timings["rerank"] = reranked.timings_ms["rerank"]
        if ranked.explained is not None:
            explained = await asyncio.shield(ranked.explained)
            if explained is None:
                degraded.append("explain")
            else:
                batch = dataclasses.replace(batch, explanations=_share_of([call], explained).explanations)
                timings["explain"] = explained.timings_ms["explain"]
        timings["total"] = (time.perf_counter() - arrived) * 1e3
        return Outcome(batch, tuple(degraded), {name: round(spent, 3) for name, spent in timings.items()})

    def close(self) -> None:
        """Give the worker threads back."""
        for worker in self._workers:
            worker.shutdown(wait=False, cancel_futures=True)

    async def _rank(self, calls: Sequence[Call]) -> list[_Ranked]:
        started = time.perf_counter()
        batch = Batch(calls=tuple(calls), at=self._clock())
        for step in self._steps:
            batch = await step(batch)
        cold = self._cold(batch)
        reranked = asyncio.ensure_future(self._rerank_some(batch.select(cold))) if cold else None
        ranked = []
        for rows, reranking in ((cold, reranked), ([row for row in range(len(calls)) if row not in cold], None)):
            wanted = [row for row in rows if calls[row].explain]
            explained = asyncio.ensure_future(self._explain_after(reranking, batch.select(wanted))) if wanted else None
            ranked += [
                _Ranked(batch, row, started, reranking, explained if calls[row].explain else None) for row in rows
            ]
        return sorted(ranked, key=lambda each: each.row)

    def _cold(self, batch: Batch) -> list[int]:
        """The rows whose users have few events, but something to be judged by: an event or an attribute."""
        if not self._rerank_below:
            return []
        counts = batch.users[USER_EVENT_COUNT].to_list()
        rows = enumerate(zip(counts, batch.known, strict=True))
        return [row for row, (count, known) in rows if count < self._rerank_below and (count or known)]

    async def _rerank_some(self, batch: Batch) -> Batch | None:
        try:
            async with asyncio.timeout(self._config.rerank_timeout_s):
                for step in self._reranking:
                    batch = await step(batch)
                return batch
        except (StageUnavailableError, TowerlineError, TimeoutError) as error:
            logger.warning("%d answers are not re-ranked: %s", len(batch), error or "it took too long")
            return None

    async def _explain_after(self, reranking: "asyncio.Task[Batch | None] | None", batch: Batch) -> Batch | None:
        reranked = await asyncio.shield(reranking) if reranking is not None else None
        return await self._explain_some(batch if reranked is None else _share_of(batch.calls, reranked))

    async def _explain_some(self, batch: Batch) -> Batch | None:
        try:
            async with asyncio.timeout(self._config.explain_timeout_s):
                for step in self._explaining:
                    batch = await step(batch)
                return batch
        except (StageUnavailableError, TimeoutError) as error:
            logger.warning("%d answers go without explanation: %s", len(batch), error or "it took too long")
            return None

    def _compose(
        self,
        names: Sequence[StageName],
        stages: Mapping[StageName, Stage],
        remote: Mapping[StageName, RemoteCall],
    ) -> list[RemoteCall]:
        """One step per remote stage and one per run of neighbouring in-process stages."""
        steps: list[RemoteCall] = []
        fused: list[tuple[str, Stage]] = []
        for name in names:
            if name in remote:
                steps += [self._in_process(fused)] if fused else []
                steps.append(_remotely(name, remote[name]))
                fused = []
            else:
                fused.append((name, stages[name]))
        return steps + ([self._in_process(fused)] if fused else [])

    def _in_process(self, stages: list[tuple[str, Stage]]) -> RemoteCall:
        """Run the stages in a thread of their own, so that the event loop goes on taking requests meanwhile."""
        worker = ThreadPoolExecutor(self._config.batches_in_flight, thread_name_prefix=stages[0][0])
        self._workers.append(worker)

        async def step(batch: Batch) -> Batch:
            return await asyncio.get_running_loop().run_in_executor(worker, run_stages, stages, batch)

        return step


def _remotely(name: str, call: RemoteCall) -> RemoteCall:
    async def step(batch: Batch) -> Batch:
        start = time.perf_counter()
        return _timed(await call(batch), name, start)

    return step
