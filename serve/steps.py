"""The steps of the graph: how a stage is run here or asked elsewhere, and what is done when it cannot make it in time.

A deadline is a moment of `time.monotonic`. It does not leave the process: a remote stage is told how many seconds its
caller will wait (`Batch.budget_s`), because clocks of two machines differ.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from serve.batch import Batch, Stage
from serve.breaker import CircuitBreaker

logger = logging.getLogger(__name__)

SMOOTHING = 0.2
"""Weight of the newest run in a stage's usual time."""


class StageUnavailableError(Exception):
    """A remote stage did not answer, or not in time; raised by its `RemoteCall` and its step."""


class StageColdError(StageUnavailableError):
    """The stage has no replica yet, which is no failure of it."""


RemoteCall = Callable[[Batch], Awaitable[Batch]]
"""One call of a remote stage with a whole micro-batch. Raises `StageUnavailableError`."""


class Step(Protocol):
    """A part of the way from requests to answers."""

    async def __call__(self, batch: Batch, deadline: float) -> Batch:
        """The batch after this step, which should be over at `deadline`."""
        ...


def run_stages(stages: Sequence[tuple[str, Stage]], batch: Batch) -> Batch:
    """Run stages one after the other in this process and note the milliseconds of each. Synchronous, without Ray."""
    for name, stage in stages:
        start = time.perf_counter()
        batch = _timed(stage.run(batch), name, start)
    return batch


def _timed(batch: Batch, name: str, start: float) -> Batch:
    spent = (time.perf_counter() - start) * 1e3
    return dataclasses.replace(batch, timings_ms={**batch.timings_ms, name: spent})


def _skip(name: str, fallback: Stage, batch: Batch) -> Batch:
    """What the batch is without the stage."""
    return dataclasses.replace(fallback.run(batch), degraded=(*batch.degraded, name))


class InProcess:
    """Neighbouring in-process stages, fused: a batch passes through them in one go.

    They run in a thread of their own, so that the event loop goes on taking requests meanwhile. One that is running
    is not interrupted; one that has a fallback is skipped if less time is left than it usually takes.
    """

    def __init__(self, stages: Sequence[tuple[str, Stage]], fallbacks: Mapping[str, Stage], threads: int) -> None:
        self._stages = tuple(stages)
        self._fallbacks = fallbacks
        self._usual_s = dict.fromkeys((name for name, _ in stages), 0.0)
        self._worker = ThreadPoolExecutor(threads, thread_name_prefix=stages[0][0])

    async def __call__(self, batch: Batch, deadline: float) -> Batch:
        """The batch after all of the stages."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._run, batch, deadline)

    def close(self) -> None:
        """Give the thread back."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _run(self, batch: Batch, deadline: float) -> Batch:
        for name, stage in self._stages:
            start = time.perf_counter()
            fallback = self._fallbacks.get(name)
            if fallback is not None and time.monotonic() + self._usual_s[name] > deadline:
                batch = _timed(_skip(name, fallback, batch), name, start)
                # A run that took unusually long must not shut the stage out for ever.
                self._usual_s[name] *= 1 - SMOOTHING
            else:
                batch = _timed(stage.run(batch), name, start)
                self._usual_s[name] += SMOOTHING * (batch.timings_ms[name] / 1e3 - self._usual_s[name])
        return batch


class Remote:
    """A stage with a deployment of its own: one call per micro-batch."""

    def __init__(
        self, name: str, call: RemoteCall, breaker: CircuitBreaker, share: float, fallback: Stage | None = None
    ) -> None:
        """`share`: the part of the time left that the stage may take. Without `fallback` no answer can do without."""
        self._name = name
        self._call = call
        self._breaker = breaker
        self._share = share
        self._fallback = fallback

    async def __call__(self, batch: Batch, deadline: float) -> Batch:
        """The batch after the stage, or after its fallback. Raises StageUnavailableError if it has none."""
        start = time.perf_counter()
        try:
            batch = await self._ask(batch, (deadline - time.monotonic()) * self._share)
        except StageUnavailableError:
            if self._fallback is None:
                raise
            batch = await asyncio.to_thread(_skip, self._name, self._fallback, batch)
        return _timed(batch, self._name, start)

    async def _ask(self, batch: Batch, budget_s: float) -> Batch:
        if budget_s <= 0:
            raise StageUnavailableError(f"no time is left for stage {self._name!r}")
        ticket = self._breaker.admit()
        if ticket is None:
            raise StageUnavailableError(f"stage {self._name!r} has failed too often a moment ago")
        try:
            async with asyncio.timeout(budget_s):
                answered = await self._call(dataclasses.replace(batch, budget_s=budget_s))
        except TimeoutError as error:
            self._breaker.unanswered(ticket, budget_s)
            logger.warning("stage %s did not answer %d requests within %.3f s", self._name, len(batch), budget_s)
            raise StageUnavailableError(f"stage {self._name!r} does not answer within {budget_s:.3f} s") from error
        except StageUnavailableError as error:
            self._breaker.record(ticket, "unknown" if isinstance(error, StageColdError) else "failed")
            raise
        except BaseException:
            self._breaker.record(ticket, "unknown")
            raise
        self._breaker.record(ticket, "answered")
        return dataclasses.replace(answered, budget_s=batch.budget_s)
