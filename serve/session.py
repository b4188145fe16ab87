"""Starts the endpoint, says where it is, and stops it: `with running(settings, config) as url: …`."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray.serve

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import open_dataset
from serve.app import NAME, application
from serve.config import AppConfig
from serve.loading import online_store
from serve.profile import base_url, http_options, logging_config, require_free_port
from train.registry import load_champion


@contextmanager
def running(settings: Settings, config: AppConfig) -> Iterator[str]:
    """The base URL of an endpoint that answers; it is stopped at the end, and Ray Serve with it if it was started here.

    The data set's current version is published to the online store first. Needs a Ray session
    (`cluster.session.connect`).

    Raises:
        TowerlineError: before anything is started, if the data set has no champion, the port is taken, or an endpoint
            runs in this Ray cluster already.
    """
    dataset = open_dataset(settings.home, config.dataset)
    load_champion(settings.tracking_uri, config.dataset)
    found = ray.serve.status()
    if NAME in found.applications:
        raise TowerlineError(
            f"the application {NAME!r} already runs in this Ray cluster; ask that one, or stop the job that started it"
        )
    started_here = not found.proxies
    if started_here:
        require_free_port(settings)
    online_store(settings, config.dataset).publish(dataset)
    try:
        ray.serve.start(proxy_location="HeadOnly", http_options=http_options(settings), logging_config=logging_config())
        ray.serve.run(application(settings, config), name=NAME, route_prefix="/", logging_config=logging_config())
        yield base_url(settings)
    finally:
        if started_here:
            ray.serve.shutdown()  # type: ignore[no-untyped-call]
        else:
            ray.serve.delete(NAME)
