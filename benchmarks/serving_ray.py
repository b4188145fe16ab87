"""An application on Ray Serve as a command."""

import threading
from typing import Any

import ray.serve

from cluster.session import connect
from cluster.settings import Settings
from serve.session import stop_serve


def run_until_stopped(
    application: ray.serve.Application,
    settings: Settings,
    http_options: dict[str, Any],
    logging_config: dict[str, Any] | None = None,
) -> None:
    """Serve until Ctrl-C, in a Ray session of its own."""
    with connect(settings, log_to_driver=False):
        ray.serve.start(http_options=http_options, logging_config=logging_config)
        try:
            ray.serve.run(application, logging_config=logging_config)
            threading.Event().wait()
        finally:
            stop_serve()
