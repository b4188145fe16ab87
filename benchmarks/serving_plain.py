"""What one would write without Ray Serve: FastAPI and uvicorn around the same stages.

python -m benchmarks.serving_plain movielens-100k 8000              one process, one request at a time
python -m benchmarks.serving_plain movielens-100k 8000 --workers 2  several, each with a micro-batcher
"""

import argparse
import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Protocol, cast

from fastapi import FastAPI

from cluster.job import run_job
from cluster.settings import Settings
from serve.batch import Batch, Call, Stage
from serve.batcher import MicroBatcher
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.graph import RANKED, Graph, GraphConfig, Outcome
from serve.loading import Parts
from serve.schemas import RecommendRequest, RecommendResponse
from serve.service import Place, Service
from serve.steps import run_stages
from train.registry import champion_pair

DATASET = "BENCH_SERVING_DATASET"
"""Environment variable: uvicorn's workers are given no arguments."""
Stages = Sequence[tuple[str, Stage]]


class Answering(Protocol):
    """As much of `serve.graph.Graph` as a recommendation takes."""

    async def recommend(self, call: Call) -> Outcome:
        """Answer one request."""
        ...

    def require_room(self, count: int = 1) -> None:
        """There is no bound here: who comes waits."""
        ...


class OneByOne:
    """Runs the stages for one request after the other, in the event loop."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def require_room(self, count: int = 1) -> None:
        """See `Answering`."""

    async def recommend(self, call: Call) -> Outcome:
        """See `Answering`."""
        batch = run_stages(self._stages, Batch(calls=(call,), at=datetime.now(UTC)))
        return Outcome(batch, (), batch.timings_ms)


class Batched:
    """Runs the stages for all requests that wait, in a thread."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._worker = ThreadPoolExecutor(1)
        self._batcher = MicroBatcher(self._run, GraphConfig().max_batch_size, 1)

    def require_room(self, count: int = 1) -> None:
        """See `Answering`."""

    async def recommend(self, call: Call) -> Outcome:
        """See `Answering`."""
        batch = await self._batcher.submit(call)
        return Outcome(batch, (), batch.timings_ms)

    async def _run(self, calls: Sequence[Call]) -> list[Batch]:
        batch = Batch(calls=tuple(calls), at=datetime.now(UTC))
        batch = await asyncio.get_running_loop().run_in_executor(self._worker, run_stages, self._stages, batch)
        return [batch.select([row]) for row in range(len(batch))]


def service_of(settings: Settings, dataset: str, answering: Callable[[Stages], Answering], replica: str) -> Service:
    """The champion's answers and decision log around the stages, run in whatever way."""
    config = AppConfig(dataset=dataset)
    parts = Parts(settings, config, champion_pair(settings.tracking_uri, dataset).variant)
    stages = [(name, parts.stage(name)) for name in RANKED]
    return Service(
        place=Place(dataset, replica),
        variant=parts.variant,
        graph=cast(Graph, answering(stages)),
        store=parts.store,
        decisions=DecisionLog(settings.home / "decisions" / dataset, replica),
    )


def application(answering: Callable[[Stages], Answering]) -> FastAPI:
    """The endpoint. Reads the data set's name from the environment."""
    service = service_of(Settings(), os.environ[DATASET], answering, f"plain-{os.getpid()}")
    app = FastAPI()

    @app.post("/v1/recommend")
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        return await service.recommend(request)

    return app


one_by_one = functools.partial(application, OneByOne)
batched = functools.partial(application, Batched)


def main(arguments: list[str]) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_plain", description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args(arguments)
    os.environ[DATASET] = asked.dataset
    import uvicorn

    factory = "one_by_one" if asked.workers == 1 else "batched"
    uvicorn.run(
        f"benchmarks.serving_plain:{factory}",
        factory=True,
        port=asked.port,
        workers=asked.workers,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    run_job(main)
