"""The gateway: the deployment that takes HTTP requests and runs the graph."""

import logging
from collections.abc import Mapping
from typing import Any

import ray.exceptions
import ray.serve
import ray.serve.exceptions
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from cluster.settings import Settings
from serve.batch import Batch
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.graph import Graph, RemoteCall, StageName, StageUnavailableError
from serve.http import build_http
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
