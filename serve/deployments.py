"""Thin Ray Serve wrappers: the gateway, and one class per stage for the stages that get replicas of their own."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray.exceptions
import ray.serve
import ray.serve.exceptions
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from cluster.settings import Settings
from serve.batch import Batch, Stage
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.gateway import build_http
from serve.graph import Graph, RemoteCall, StageName, StageUnavailableError
from serve.loading import Parts
from serve.service import Place, Service

logger = logging.getLogger(__name__)


@ray.serve.ingress()
class Gateway:
    """Takes HTTP requests and runs the graph; the in-process stages live in its replicas."""

    def __init__(
        self, settings: Settings, config: AppConfig, remote: Mapping[StageName, DeploymentHandle[Any]]
    ) -> None:
        replica = ray.serve.get_replica_context().replica_id.unique_id
        parts = Parts(settings, config)
        stages = {name: parts.stage(name) for name in config.graph.in_process()}
        calls = {name: _remote_call(name, handle) for name, handle in remote.items()}
        self._service = Service(
            place=Place(config.dataset, replica),
            variant=parts.variant,
            graph=Graph(config.graph, stages, calls),
            store=parts.store,
            decisions=DecisionLog(settings.home / "decisions" / config.dataset, replica),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http(self._service)

    async def check_health(self) -> None:
        """Called by Serve: a replica whose model does not answer is replaced."""
        await self._service.health()


class StageReplica:
    """Base of the remote stages: one stage, asked for whole batches."""

    name: StageName

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._stage: Stage = Parts(settings, config).stage(self.name)

    async def run(self, batch: Batch) -> Batch:
        """The stage's answer, computed in a thread so that the replica goes on answering health checks."""
        return await asyncio.to_thread(self._stage.run, batch)


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


class ExplainReplica(StageReplica):
    """Runs the language model."""

    name = "explain"


REPLICAS: Mapping[StageName, type[StageReplica]] = {
    replica.name: replica
    for replica in (FeaturesReplica, RetrievalReplica, FilterReplica, RankingReplica, ExplainReplica)
}


def _remote_call(name: StageName, handle: DeploymentHandle[Any]) -> RemoteCall:
    """One handle call per batch. What Ray reports as failure of the stage becomes `StageUnavailableError`."""

    async def call(batch: Batch) -> Batch:
        try:
            answered: Any = await handle.run.remote(batch)
        except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
            logger.warning("stage %s failed: %s", name, error)
            raise StageUnavailableError(f"stage {name!r} does not answer") from error
        assert isinstance(answered, Batch)
        return answered

    return call
