"""From the stages of a graph to its steps: neighbouring in-process stages are fused, remote ones stay apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.batch import Batch, Stage
from serve.breaker import CircuitBreaker
from serve.metrics import Metrics
from serve.steps import InProcess, Remote, RemoteCall, Step

Name = TypeVar("Name", bound=str)


class Composition(Generic[Name]):
    """Of one graph."""

    def __init__(
        self,
        stages: Mapping[Name, Stage],
        remote: Mapping[Name, RemoteCall],
        fallbacks: Mapping[Name, Stage],
        breakers: Mapping[Name, CircuitBreaker],
        metrics: Metrics,
        *,
        share: float,
        threads: int,
    ) -> None:
        """`stages` are in process, the others `remote`, each with its breaker; `fallbacks` take the place of either.

        A remote stage may take `share` of the time left; `threads` run each run of in-process ones.
        """
        self._stages = stages
        self._remote = remote
        self._fallbacks = fallbacks
        self._breakers = breakers
        self._metrics = metrics
        self._share = share
        self._threads = threads
        self._fused: list[InProcess] = []

    def steps(self, names: Sequence[Name]) -> list[Step]:
        """One step per remote stage and one per run of neighbouring in-process stages, each measured."""
        steps: list[Step] = []
        run: list[tuple[str, Stage]] = []
        for name in names:
            if name in self._remote:
                steps += [self._fuse(run)] if run else []
                call, breaker, fallback = self._remote[name], self._breakers[name], self._fallbacks.get(name)
                steps.append(Remote(name, call, breaker, self._share, fallback))
                run = []
            else:
                run.append((name, self._stages[name]))
        steps += [self._fuse(run)] if run else []
        return [_Measured(step, self._metrics) for step in steps]

    def close(self) -> None:
        """Give the worker threads back."""
        for step in self._fused:
            step.close()

    def _fuse(self, stages: Sequence[tuple[str, Stage]]) -> InProcess:
        step = InProcess(stages, {str(name): each for name, each in self._fallbacks.items()}, self._threads)
        self._fused.append(step)
        return step


@dataclass(frozen=True)
class _Measured:
    step: Step
    metrics: Metrics

    async def __call__(self, batch: Batch, deadline: float) -> Batch:
        answered = await self.step(batch, deadline)
        self.metrics.stages(batch.timings_ms, answered.timings_ms)
        return answered
