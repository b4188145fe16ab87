"""Graphs whose stages answer from elsewhere, too late or not at all."""

import asyncio
import pickle
from datetime import UTC, datetime

from serve.batch import Batch, Call, Stage
from serve.breaker import BreakerConfig
from serve.graph import Graph, GraphConfig, StageName
from serve.steps import RemoteCall, StageUnavailableError

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CALLS = [Call(f"d{number}", f"user {number}", 5, ("item-1",) * (number % 2)) for number in range(12)]
Stages = dict[StageName, Stage]


class Remote:
    """Another process's stage: the batch is pickled on the way there and back, and the calls are counted."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[int] = []

    async def __call__(self, batch: Batch) -> Batch:
        self.calls.append(len(batch))
        await asyncio.sleep(0.01)
        answered: Batch = pickle.loads(pickle.dumps(self.stage.run(pickle.loads(pickle.dumps(batch)))))
        return answered


async def unavailable(_: Batch) -> Batch:
    raise StageUnavailableError("stage does not answer")


async def slow(batch: Batch) -> Batch:
    await asyncio.sleep(0.5)
    return batch


async def never(batch: Batch) -> Batch:
    await asyncio.Event().wait()
    return batch


def degrading(
    stages: Stages, fallbacks: Stages, remote: dict[StageName, RemoteCall], breaker: BreakerConfig | None = None
) -> Graph:
    """A graph that gives a remote stage a small part of the time that there is."""
    config = GraphConfig(budget_s=30, stage_share=0.004, breaker=breaker or BreakerConfig())
    config = config.model_copy(update=dict.fromkeys(remote, "remote"))
    return Graph(config, stages, {"explain": unavailable} | remote, fallbacks, lambda: NOW)


def graph_of(config: GraphConfig, stages: Stages, remote: dict[StageName, RemoteCall]) -> Graph:
    return Graph(config, stages, {"explain": unavailable} | remote, clock=lambda: NOW)
