"""How the stages are composed: each edge is a call in this process or one handle call per micro-batch to a deployment.

The stages up to the ranking are run for all requests that wait at the same moment. Neighbouring in-process stages are
fused: the batch passes through them in one go. What the language model does, re-ranking for cold users and sentences
for those who asked for them, is apart from that, and nobody else waits for it.

Every request has a deadline. A stage that does not answer in time, or has failed too often to be asked, is skipped:
its fallback takes its place, and the answer says so (`degraded`). Those without a fallback fail the request.
"""

import asyncio
import dataclasses
import math
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.batch import Batch, Call, Stage
from serve.batcher import MicroBatcher
from serve.breaker import BreakerConfig, CircuitBreaker, State
from serve.composition import Composition
from serve.explaining import Explaining
from serve.metrics import Metrics
from serve.reranking import Reranking
from serve.steps import RemoteCall

Edge = Literal["in_process", "remote"]
StageName = Literal[
    "features", "retrieval", "filter", "ranking", "profile", "rerank", "diversity", "limit", "facts", "explain"
]
RANKED: tuple[StageName, ...] = ("features", "retrieval", "filter", "ranking", "diversity", "limit")
"""The stages that every answer needs, in order."""
RERANKED: tuple[StageName, ...] = ("profile", "rerank")
"""The stages that re-rank for cold users, after the ranking."""
AFTER_RANKING = RANKED.index("ranking") + 1
EXPLAINED: tuple[StageName, ...] = ("facts", "explain")
"""The stages that add the sentences."""
OF_LANGUAGE_MODEL: tuple[StageName, ...] = ("rerank", "explain")
"""The stages that the language model works in."""
MAX_BUDGET_S = 30.0
MAX_REQUESTS = 100
"""Requests that may come in one; the queue must have room for them."""


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
    diversity: Edge = "in_process"
    """What rules say of an answer as a whole is always seen to in process after it (`limit`)."""
    explain: Edge | Literal["off"] = "remote"
    """Gathering the facts for it always happens in process. Off, there is no language model, and no sentences."""

    retrieval_shards: int = Field(default=1, ge=1, le=64)
    """Deployments among which the items are divided, where retrieval is remote; each is asked once per micro-batch."""

    candidates: int = Field(default=100, ge=1, le=10_000)
    """Items that retrieval hands to the ranker, after those already seen are left out."""

    diversity_lambda: float = Field(default=1.0, ge=0, le=1)
    """Weight of the score against likeness to better items (maximal marginal relevance); 1 keeps the order."""

    max_batch_size: int = Field(default=64, ge=1)
    """Most requests that are answered together."""

    max_waiting: int = Field(default=256, ge=MAX_REQUESTS)
    """Most requests that wait for their batch. A further one is refused at once."""

    batches_in_flight: int = Field(default=1, ge=1)
    """Batches under way at once. One lets batches grow with load; more pays only where remote stages overlap."""

    budget_s: float = Field(default=5.0, gt=0, le=MAX_BUDGET_S)
    """Seconds that a request has until it must be ranked, unless it brings a budget of its own, which then includes its
    sentences. What is not answered by then fails."""

    stage_share: float = Field(default=0.8, gt=0, le=1)
    """The part of the time left that one remote stage may take; the rest is for what comes after it."""

    breaker: BreakerConfig = BreakerConfig()
    """Of every remote stage."""

    rerank_timeout_s: float = Field(default=3.0, gt=0)
    """After so many seconds, or after `stage_share` of the time left, an answer goes on in the ranker's order."""

    rerank_waiting: int = Field(default=64, ge=1)
    """Most requests that are re-ranked at once. Further ones keep the ranker's order."""

    explained_items: int = Field(default=3, ge=1, le=10)
    """How many of the first items come with a sentence, when sentences are asked for."""

    explain_timeout_s: float = Field(default=15.0, gt=0)
    """After this many seconds an answer goes out without its sentences."""

    explain_waiting: int = Field(default=64, ge=1)
    """Most requests that wait for sentences at once. Further ones are answered without."""

    @model_validator(mode="after")
    def _only_a_remote_retrieval_has_shards(self) -> Self:
        if self.retrieval_shards > 1 and self.retrieval != "remote":
            raise ValueError(
                f"retrieval_shards is {self.retrieval_shards}, and retrieval is {self.retrieval!r}, expected 'remote'"
            )
        return self

    def remote(self) -> tuple[StageName, ...]:
        """The stages with a deployment of their own."""
        names: tuple[StageName, ...] = (*RANKED, *RERANKED, *EXPLAINED)
        return tuple(name for name in names if getattr(self, name, "in_process") == "remote")

    def most_requests(self) -> int:
        """Most requests that a graph has under way: they wait, are being ranked, re-ranked or explained."""
        reranked = 0 if self.rerank == "off" else self.rerank_waiting
        explained = 0 if self.explain == "off" else self.explain_waiting
        return self.max_waiting + self.max_batch_size * self.batches_in_flight + reranked + explained

    def in_process(self) -> tuple[StageName, ...]:
        """The stages that live in the gateway's replicas."""
        reranked = () if self.rerank == "off" else RERANKED
        explained = () if self.explain == "off" else EXPLAINED
        return tuple(name for name in (*RANKED, *reranked, *explained) if name not in self.remote())

    def here(self) -> "GraphConfig":
        """The same graph without deployments and without sentences, for whoever has all the time in the world."""
        edges = dict.fromkeys(self.remote(), "in_process")
        patience = {"rerank_timeout_s": math.inf, "rerank_waiting": sys.maxsize}
        return self.model_copy(update=edges | patience | {"explain": "off", "retrieval_shards": 1})


@dataclass(frozen=True)
class Outcome:
    """One request's share of an answered batch: `batch` has a single row."""

    batch: Batch
    degraded: tuple[str, ...]
    timings_ms: Mapping[str, float]


class TooLateError(Exception):
    """The deadline of a request went by."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    call: Call
    deadline: float

    def shares_with(self, other: "_Waiting") -> bool:
        """Whether the two may be answered together: whoever is in a hurry must not cost the patient their stages."""
        mine, others = self.call.budget_s, other.call.budget_s
        if mine is None or others is None:
            return mine is others
        return max(mine, others) <= 2 * min(mine, others)


@dataclass(frozen=True)
class _Ranked:
    batch: Batch
    row: int
    started: float
    explained: "asyncio.Task[Batch | None] | None"


@dataclass(frozen=True)
class _Cold:
    """One of those that are being re-ranked together."""

    reranked: "asyncio.Task[list[_Ranked]]"
    row: int


class Graph:
    """Answers requests through the composed stages. Belongs to one event loop."""

    def __init__(
        self,
        config: GraphConfig,
        stages: Mapping[StageName, Stage],
        remote: Mapping[StageName, RemoteCall],
        fallbacks: Mapping[StageName, Stage] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        rerank_below: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """`stages` holds the in-process stages of `config`, `remote` the others.

        `fallbacks` holds what takes the place of a stage that is skipped; one without is needed by every answer.
        `clock` gives the time in UTC. Users of whom fewer than `rerank_below` events are known are re-ranked.
        `metrics` is told how it goes.
        """
        self._config = config
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._breakers = {name: CircuitBreaker(name, config.breaker) for name in remote}
        self._composition = compose = Composition(
            stages,
            remote,
            fallbacks or {},
            self._breakers,
            self._metrics,
            share=config.stage_share,
            threads=config.batches_in_flight,
        )
        reranks = config.rerank != "off" and rerank_below > 0
        together = AFTER_RANKING if reranks else len(RANKED)
        self._steps = compose.steps(RANKED[:together])
        self._reranking = (
            Reranking(
                compose.steps(RERANKED),
                rerank_below,
                timeout_s=config.rerank_timeout_s,
                share=config.stage_share,
                places=config.rerank_waiting,
            )
            if reranks
            else None
        )
        self._finishing = compose.steps(RANKED[together:])
        """What is left to be done once it is known who is cold."""
        self._explaining = Explaining(
            compose.steps(EXPLAINED) if config.explain != "off" else (),
            timeout_s=config.explain_timeout_s,
            places=config.explain_waiting,
        )
        self._batcher = MicroBatcher(
            self._rank, config.max_batch_size, config.batches_in_flight, _Waiting.shares_with, config.max_waiting
        )

    @property
    def circuits(self) -> Mapping[StageName, State]:
        """The state of each remote stage's circuit breaker."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    def load(self) -> dict[str, float]:
        """How busy the queue was since the last call, as `LoadMeter.read`."""
        return self._batcher.load.read()

    def require_room(self, count: int = 1) -> None:
        """Raise QueueFullError if so many more requests may not wait."""
        self._batcher.require_room(count)

    def recommend(self, call: Call) -> Coroutine[Any, Any, Outcome]:
        """The answer to one request, to be awaited. It has its place in the queue when this returns.

        Whether there is room for it is for its caller to ask. Awaiting it raises:
            StageUnavailableError: a stage that every answer needs is gone.
            TooLateError: the request's budget was used up before it could be answered at all.
        """
        budget_s = self._config.budget_s if call.budget_s is None else call.budget_s
        place = self._batcher.submit(_Waiting(call, time.monotonic() + budget_s))
        return self._outcome(call, self._ranked(place, budget_s), time.perf_counter())

    async def _outcome(self, call: Call, coming: Awaitable[_Ranked], arrived: float) -> Outcome:
        ranked = await coming
        timings = {"queue": (ranked.started - arrived) * 1e3, **ranked.batch.timings_ms}
        batch = ranked.batch.select([ranked.row])
        degraded = batch.degraded
        if call.explain:
            explained = await asyncio.shield(ranked.explained) if ranked.explained is not None else None
            if explained is None:
                degraded = (*degraded, "explain")
            else:
                mine = [each.decision_id for each in explained.calls].index(call.decision_id)
                batch = dataclasses.replace(batch, explanations=(explained.explanations[mine],))
                timings["explain"] = explained.timings_ms["explain"]
        self._metrics.ranked(ranked.started - arrived, degraded)
        timings["total"] = (time.perf_counter() - arrived) * 1e3
        return Outcome(batch, degraded, {name: round(spent, 3) for name, spent in timings.items()})

    def close(self) -> None:
        """Give the worker threads back."""
        self._composition.close()

    async def _ranked(self, place: Awaitable[_Ranked | _Cold], budget_s: float) -> _Ranked:
        try:
            async with asyncio.timeout(budget_s) as timer:
                ranked = await place
                if isinstance(ranked, _Cold):
                    ranked = (await asyncio.shield(ranked.reranked))[ranked.row]
                return ranked
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise TooLateError(f"there is no answer within the request's {budget_s:g} s") from error

    async def _rank(self, waiting: Sequence[_Waiting]) -> Sequence[_Ranked | _Cold]:
        started = time.perf_counter()
        deadline = min(each.deadline for each in waiting)
        batch = Batch(calls=tuple(each.call for each in waiting), at=self._clock())
        self._metrics.batch(len(batch), self._config.max_batch_size)
        for step in self._steps:
            batch = await step(batch, deadline)
        self._metrics.candidates(batch.named_by)
        cold = self._reranking.cold(batch) if self._reranking is not None else []
        if not cold:
            return await self._finish(batch, deadline, started)
        reranked = asyncio.ensure_future(self._rerank(batch.select(cold), deadline, started))
        answers: dict[int, _Ranked | _Cold] = {row: _Cold(reranked, place) for place, row in enumerate(cold)}
        if others := [row for row in range(len(batch)) if row not in answers]:
            answers |= zip(others, await self._finish(batch.select(others), deadline, started), strict=True)
        return [answers[row] for row in range(len(batch))]

    async def _rerank(self, batch: Batch, deadline: float, started: float) -> list[_Ranked]:
        assert self._reranking is not None
        return await self._finish(await self._reranking(batch, deadline), deadline, started)

    async def _finish(self, batch: Batch, deadline: float, started: float) -> list[_Ranked]:
        for step in self._finishing:
            batch = await step(batch, deadline)
        explained = self._explaining.start(batch, deadline)
        return [_Ranked(batch, row, started, explained) for row in range(len(batch))]
