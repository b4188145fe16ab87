"""Starts the endpoint, says where it is, and stops it: `with running(settings, config) as url: …`."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from serve.app import NAME, application
from serve.config import AppConfig
from serve.loading import online_store
from serve.profile import SERVE_TIMEOUT_S, base_url, grpc_options, http_options, logging_config, require_free_port
from serve.vllm.server import require_vllm
from train.registry import champion_cards

STOP_TIMEOUT_S = SERVE_TIMEOUT_S


@dataclass(frozen=True)
class Servable:
    """What can be served."""

    dataset: Dataset
    history_length: int
    """Events of a user's history that the champion's features carry."""


def require_servable(settings: Settings, config: AppConfig, *, here: bool = True) -> Servable:
    """What is to be served, after a look at everything that can be checked without Ray.

    Raises:
        TowerlineError: there is no such data set, it has no champion that fits this code, or it is to be served `here`
            and the port is taken (which in a running cluster may be by Ray Serve itself, and is not looked at) or vLLM
            is missing (which there other nodes may have).
    """
    on_this_machine = here and not settings.ray_address and "RAY_ADDRESS" not in os.environ
    if on_this_machine and config.explain.on_gpus is not None and config.graph.explain == "remote":
        require_vllm()
    dataset = open_dataset(settings.home, config.dataset)
    cards = champion_cards(settings.tracking_uri, config.dataset)
    if on_this_machine:
        require_free_port(settings)
    return Servable(dataset, cards["two-tower"].history_length)


@contextmanager
def running(settings: Settings, config: AppConfig) -> Iterator[str]:
    """The base URL of an endpoint that answers; it is stopped at the end, and Ray Serve with it if it was started here.

    The data set's current version is published to the online store first. Needs a Ray session
    (`cluster.session.connect`).

    Raises:
        TowerlineError: before anything is started, if the data set cannot be served (`require_servable`) or an
            endpoint runs in this Ray cluster already.
    """
    found = ray.serve.status()
    if NAME in found.applications:
        raise TowerlineError(
            f"the application {NAME!r} already runs in this Ray cluster; ask that one, or stop the job that started it"
        )
    _require_shared_store(settings)
    servable = require_servable(settings, config)
    started_here = not found.proxies
    if started_here:
        require_free_port(settings)
    publish(settings, servable)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        ray.serve.start(
            proxy_location="HeadOnly",
            http_options=http_options(settings),
            grpc_options=grpc_options(settings),
            logging_config=logging_config(),
        )
        deploy(settings, config)
        yield base_url(settings)
    finally:
        if started_here:
            stop_serve()
        else:
            ray.serve.delete(NAME)


def publish(settings: Settings, servable: Servable) -> None:
    """Bring the data set's current version to the online store."""
    store = online_store(settings, servable.dataset.name, servable.history_length)
    store.publish(servable.dataset)
    store.close()


def _require_shared_store(settings: Settings) -> None:
    """Raise TowerlineError if replicas on several nodes would each have an online store of their own."""
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    if nodes > 1 and not settings.online_store:
        raise TowerlineError(
            f"this Ray cluster has {nodes} nodes, and the online store is SQLite in {settings.home}, which serves one; "
            "set TOWERLINE_ONLINE_STORE to the Redis that all of them reach, redis://host:6379/0"
        )


def deploy(settings: Settings, config: AppConfig) -> None:
    """Deploy the application and wait until it answers; where one runs, its replicas are replaced as it answers on.

    Raises TowerlineError if it does not start; one that ran before goes on then.
    """
    try:
        ray.serve.run(application(settings, config), name=NAME, route_prefix="/", logging_config=logging_config())
    except RuntimeError as error:
        raise TowerlineError(f"the endpoint of data set {config.dataset!r} did not start: {error}") from error


def stop_serve() -> None:
    """Stop Ray Serve in this session: replicas drain, then everything that listens is gone.

    `ray.serve.shutdown` alone waits inside a call that Ray then reports as failed, on everybody's screen.
    """
    controller = _controller()
    if controller is not None:
        with suppress(ray.exceptions.RayActorError):
            ray.get(controller.graceful_shutdown.remote(wait=False))
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _controller() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
    ray.serve.shutdown()  # type: ignore[no-untyped-call]


def _controller() -> Any:
    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
