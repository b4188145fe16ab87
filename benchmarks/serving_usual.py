"""The usual way to compose models on Ray Serve: a deployment for each stage, `@ray.serve.batch` at the callee.

    python -m benchmarks.serving_usual movielens-100k 8000

Everything that is not said here is Ray Serve's default.
"""
# No `from __future__ import annotations` here: FastAPI reads the types within the deployment.

import argparse
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import ray.serve
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from benchmarks.serving_plain import Stages, service_of
from benchmarks.serving_ray import run_until_stopped
from cluster.job import run_job
from cluster.settings import Settings
from serve.batch import Batch, Call
from serve.config import AppConfig
from serve.graph import Outcome, StageName
from serve.loading import Parts
from serve.schemas import RecommendRequest, RecommendResponse
from serve.steps import run_stages
from train.registry import champion_pair

DEPLOYED: tuple[StageName, ...] = ("features", "retrieval", "filter", "ranking")
"""The stages that do something here; the others have nothing to do without rules."""


def merged(batches: Sequence[Batch]) -> Batch:
    """One batch of several, each of which has been through the same stages."""
    first = batches[0]
    if len(batches) == 1:
        return first
    asked = [each.sources_BKS for each in batches if each.sources_BKS is not None]
    return dataclasses.replace(
        first,
        calls=tuple(call for each in batches for call in each.calls),
        at=max(each.at for each in batches),
        users=pl.concat([each.users for each in batches]),
        known=tuple(known for each in batches for known in each.known),
        seen=tuple(seen for each in batches for seen in each.seen),
        codes_BK=_stacked([each.codes_BK for each in batches]),
        retrieval_BK=_stacked([each.retrieval_BK for each in batches]),
        sources_BKS=np.concatenate(asked) if asked else None,
        named_by=tuple(named for each in batches for named in each.named_by),
    )


def _stacked(columns: Sequence[Any]) -> Any:
    return np.concatenate(columns) if columns[0].size else columns[0]


@ray.serve.deployment
class UsualStage:
    """One stage, asked by one request at a time and batched here."""

    def __init__(self, settings: Settings, dataset: str, name: StageName) -> None:
        variant = champion_pair(settings.tracking_uri, dataset).variant
        self._stage = Parts(settings, AppConfig(dataset=dataset), variant).stage(name)

    @ray.serve.batch
    async def __call__(self, batches: list[Batch]) -> list[Batch]:
        """The batches after the stage, run for all of them together."""
        answered = self._stage.run(merged(batches))
        return [answered.select([row]) for row in range(len(answered))]


class Hops:
    """Asks one deployment after the other."""

    def __init__(self, handles: Sequence[DeploymentHandle[Any]], rest: Stages) -> None:
        self._handles = handles
        self._rest = rest

    def require_room(self, count: int = 1) -> None:
        """See `benchmarks.serving_plain.Answering`."""

    async def recommend(self, call: Call) -> Outcome:
        """See `benchmarks.serving_plain.Answering`."""
        batch = Batch(calls=(call,), at=datetime.now(UTC))
        for handle in self._handles:
            batch = await handle.remote(batch)
        return Outcome(run_stages(self._rest, batch), (), {})


app = FastAPI()


@ray.serve.deployment
@ray.serve.ingress(app)
class UsualGateway:
    """Takes HTTP requests and asks the stages."""

    def __init__(self, settings: Settings, dataset: str, handles: Sequence[DeploymentHandle[Any]]) -> None:
        self._service = service_of(
            settings, dataset, lambda stages: Hops(handles, stages[len(DEPLOYED) :]), "usual-gateway"
        )

    @app.post("/v1/recommend")
    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Items for a user."""
        return await self._service.recommend(request)


def main(arguments: list[str]) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_usual", description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("port", type=int)
    asked, settings = parser.parse_args(arguments), Settings(num_cpus=8)
    stages = [
        UsualStage.options(name=f"Usual-{name}").bind(settings, asked.dataset, name)  # type: ignore[attr-defined]
        for name in DEPLOYED
    ]
    application = UsualGateway.bind(settings, asked.dataset, stages)  # type: ignore[attr-defined]
    run_until_stopped(application, settings, {"port": asked.port})


if __name__ == "__main__":
    run_job(main)
