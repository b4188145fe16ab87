"""The gateway: the deployment that takes HTTP and gRPC requests and runs the graph."""

import asyncio
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import ray.serve
from fastapi import FastAPI
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.batch import Batch
from serve.cold_start import ColdStart
from serve.completions import add_completions
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.edition import Edition
from serve.graph import OF_LANGUAGE_MODEL, RANKED, Graph, StageName
from serve.http import answer, build_http
from serve.limits import Limits
from serve.loading import Parts, Trained, make_first
from serve.metrics import Metrics
from serve.ray_failures import REPLICA_FAILURES
from serve.ray_metrics import OnRay
from serve.remote_model import RemoteModel
from serve.reranking_policy import RerankingPolicy
from serve.rpc import recommend as rpc
from serve.rpc import recommender_pb2 as messages
from serve.schemas import Health
from serve.service import Place, Service
from serve.stages.shards import sharded
from serve.steps import RemoteCall, StageUnavailableError
from serve.takeover import Champions, Live

RPC = "towerline.v1.Recommender/Recommend"
"""The endpoint of gRPC among those of HTTP, in metrics."""

logger = logging.getLogger(__name__)


@ray.serve.ingress()
class Gateway:
    """Takes HTTP and gRPC requests and runs the graph; the in-process stages live in its replicas."""

    def __init__(
        self,
        settings: Settings,
        config: AppConfig,
        remote: Mapping[StageName, DeploymentHandle[Any]],
        reranking: RerankingPolicy | None = None,
        shards: Sequence[DeploymentHandle[Any]] = (),
    ) -> None:
        """`remote`: the deployments of stages. `shards`: those of the retrieval, where it is divided."""
        self._settings = settings
        self._config = config
        self._remote = remote
        self._shards = shards
        self._reranking = reranking
        may_be_cold = config.explain_replicas.min == 0
        self._cold_starts = {
            name: ColdStart(handle) for name, handle in remote.items() if may_be_cold and name in OF_LANGUAGE_MODEL
        }
        self._replica = ray.serve.get_replica_context().replica_id.unique_id
        self._decisions = DecisionLog(settings.home / "decisions" / config.dataset, self._replica)
        self._metrics = Metrics(OnRay())
        self._trained = Trained(settings, config)
        first = make_first(settings, config, self._make)
        self._live = Live(first.made, self._decisions, first.champion, first.refused, self._metrics)
        self._limits = Limits(config.request_timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = build_http(self._live, self._following, self._config.request_timeout_s)
        if "explain" in self._remote:
            model = RemoteModel(
                self._remote["explain"], self._config.most_completions, self._cold_starts.get("explain")
            )
            add_completions(
                app, model, self._config.completions, self._config.request_timeout_s, self._config.explain.identity
            )
        return app

    async def Recommend(
        self, message: messages.RecommendRequest, grpc_context: RayServegRPCContext
    ) -> messages.RecommendResponse:
        """Called by Serve's gRPC proxy: `POST /v1/recommend` as a message."""
        start = time.perf_counter()
        try:
            recommend = functools.partial(answer, self._live, self._limits)
            return await rpc.recommend(recommend, message, grpc_context)
        finally:
            code = grpc_context.code()
            status = code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK
            self._metrics.request(RPC, status.name, time.perf_counter() - start)

    async def check_health(self) -> None:
        """Called by Serve: a replica whose model does not answer is replaced."""
        await self._live.health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what the autoscaling policies are told of this replica."""
        return self._live.load()

    def _following(self) -> AbstractAsyncContextManager[None]:
        champions = Champions(self._settings, self._config.dataset)
        return self._live.following(champions.look, self._prepare, self._config.champion_poll_s, self._has_grown)

    def _has_grown(self, service: Service) -> bool:
        """Whether the data set has other new items than those that a service answers with. Blocks."""
        return self._parts(service.variant).edition != service.edition

    async def _prepare(self, variant: str) -> Service:
        """A service that has answered a probe, here and, where stages are remote, with every replica of theirs."""
        service = await asyncio.to_thread(self._make, variant)
        try:
            remote = [*(self._remote[name] for name in RANKED if name in self._remote), *self._shards]
            await asyncio.gather(*(handle.broadcast("prepare", service.edition).results_async() for handle in remote))
            _require_whole(await service.health())
        except BaseException:
            service.close()
            raise
        return service

    def _make(self, variant: str) -> Service:
        parts = self._parts(variant)
        below = self._reranking.below_events if self._reranking is not None else 0
        stages = {name: parts.stage(name) for name in self._config.graph.in_process()}
        calls = {
            name: _remote_call(name, handle, parts.edition, self._cold_starts.get(name))
            for name, handle in self._remote.items()
        }
        if self._shards:
            shards = [_remote_call("retrieval", handle, parts.edition, None) for handle in self._shards]
            calls["retrieval"] = sharded(shards, parts.election())
        return Service(
            place=Place(self._config.dataset, self._replica),
            variant=parts.variant,
            graph=Graph(
                self._config.graph, stages, calls, parts.fallbacks(), rerank_below=below, metrics=self._metrics
            ),
            store=parts.store,
            decisions=self._decisions,
            language_model=self._config.explain.identity,
        )

    def _parts(self, variant: str) -> Parts:
        return Parts(self._settings, self._config, variant, self._reranking, trained=self._trained)


def _require_whole(health: Health) -> None:
    """Raise TowerlineError if stages were left out of a variant's first answer."""
    if health.degraded:
        raise TowerlineError(f"variant {health.variant} answers its first probe without {', '.join(health.degraded)}")


def _remote_call(
    name: StageName, handle: DeploymentHandle[Any], edition: Edition, cold_start: ColdStart | None
) -> RemoteCall:
    """One handle call per batch, which says by which variant, with which new items, it is answered.

    What Ray reports as failure of the stage becomes `StageUnavailableError`. A caller that gives up calls it off.
    Where there may be no replica (`cold_start`), nobody waits until there is one.
    """

    async def call(batch: Batch) -> Batch:
        try:
            if cold_start is not None:
                await cold_start.require_warm()
            answered = await _called_off_with_its_caller(handle.run.remote(batch, edition))
        except REPLICA_FAILURES as error:
            logger.warning("stage %s failed: %s", name, error)
            raise StageUnavailableError(f"stage {name!r} does not answer") from error
        assert isinstance(answered, Batch)
        return answered

    return call


async def _called_off_with_its_caller(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
