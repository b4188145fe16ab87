"""The serving application: `serve.app:build` is the one import path that Ray Serve is given."""
# No `from __future__ import annotations` here: Serve reads the type of `build`'s argument at run time.

from typing import Any

import ray.serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig

from cluster.settings import Settings
from serve.autoscaling import Autoscaler
from serve.config import AppConfig, Replicas
from serve.deployments import REPLICAS, RetrievalShardReplica, VllmExplainReplica
from serve.gateway import Gateway
from serve.graph import OF_LANGUAGE_MODEL
from serve.limits import MAX_IN_THREADS
from serve.loading import reranking_policy

NAME = "towerline"
"""Name of the application within Ray Serve."""


ONE_THREAD = {"POLARS_MAX_THREADS": "1"}
"""A request's tables are small: handing them out to threads costs a third more than it saves."""


BESIDES = MAX_IN_THREADS + 64
"""Requests that a gateway has under way beside those in its graph: for the store, and to be refused."""


def build(args: AppConfig) -> Application:
    """The application for these arguments and the settings of the environment."""
    return application(Settings(), args)


def application(settings: Settings, config: AppConfig) -> Application:
    """The gateway bound to its remote stages. The policy of re-ranking is read here, once for all replicas."""
    policy = reranking_policy(settings, config)
    if policy is None:
        config = config.model_copy(update={"graph": config.graph.model_copy(update={"rerank": "off"})})
    remote = {}
    for name in config.graph.remote():
        if name == "retrieval" and config.graph.retrieval_shards > 1:
            continue
        replica: type[Any] = REPLICAS[name]
        replicas = config.explain_replicas if name in OF_LANGUAGE_MODEL else config.stage_replicas
        beside = config.completions.most if name == "explain" else 0
        options = _options(replica.__name__, replicas, replicas.max_ongoing_requests + beside, config)
        if name == "explain" and (vllm := config.explain.on_gpus) is not None:
            replica, options = VllmExplainReplica, vllm.placed(options)
        more = (policy,) if name == "rerank" else ()
        remote[name] = ray.serve.deployment(**options)(replica).bind(settings, config, *more)
    shards = _retrieval_shards(settings, config) if config.graph.retrieval_shards > 1 else ()
    under_way = config.graph.most_requests() + config.most_completions + BESIDES
    most = max(config.gateway_replicas.max_ongoing_requests, under_way)
    gateway = ray.serve.deployment(**_options("Gateway", config.gateway_replicas, most, config))(Gateway)
    return gateway.bind(settings, config, remote, policy, shards)


def _retrieval_shards(settings: Settings, config: AppConfig) -> tuple[Application, ...]:
    replicas = config.stage_replicas
    deployments = (
        _options(f"{RetrievalShardReplica.__name__}{number}", replicas, replicas.max_ongoing_requests, config)
        for number in range(config.graph.retrieval_shards)
    )
    return tuple(
        ray.serve.deployment(**options)(RetrievalShardReplica).bind(settings, config, number)
        for number, options in enumerate(deployments)
    )


def scaling(replicas: Replicas) -> AutoscalingConfig:
    """Our policies within Ray's bounds and delays."""
    return AutoscalingConfig(
        min_replicas=replicas.min,
        max_replicas=replicas.max,
        target_ongoing_requests=replicas.target_ongoing_requests,
        upscale_delay_s=replicas.upscale_delay_s,
        downscale_delay_s=replicas.downscale_delay_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=Autoscaler, policy_kwargs=replicas.policy().model_dump(mode="json", exclude_none=True)
        ),
    )


def _options(name: str, replicas: Replicas, max_ongoing_requests: int, config: AppConfig) -> dict[str, Any]:
    return {
        "name": name,
        "autoscaling_config": scaling(replicas),
        "max_ongoing_requests": max_ongoing_requests,
        # The last resort: the gateway refuses before that, and its graph asks no more of a stage.
        "max_queued_requests": max_ongoing_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "runtime_env": {"env_vars": ONE_THREAD}},
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": config.request_timeout_s,
        "max_constructor_retry_count": 3,
        # The new replicas of a rollout answer before the old ones stop: one replica is no downtime.
        "max_surge_percent": 100,
    }
