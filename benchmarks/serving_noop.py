"""The limit: a gateway on Ray Serve that reads a request and answers nothing.

python -m benchmarks.serving_noop 8000
"""
# No `from __future__ import annotations` here: FastAPI reads the types within the deployment.

import argparse

import ray.serve
from fastapi import FastAPI

from benchmarks.serving_ray import run_until_stopped
from cluster.job import run_job
from cluster.settings import Settings
from serve.profile import http_options, logging_config
from serve.schemas import RecommendRequest

app = FastAPI()


@ray.serve.deployment(max_ongoing_requests=256)
@ray.serve.ingress(app)
class NoopGateway:
    """Takes HTTP requests."""

    @app.post("/v1/recommend")
    async def recommend(self, request: RecommendRequest) -> dict[str, str]:
        """The user who asks."""
        return {"user_id": request.user_id}


def main(arguments: list[str]) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_noop", description=__doc__)
    parser.add_argument("port", type=int)
    settings = Settings(serve_port=parser.parse_args(arguments).port)
    application = NoopGateway.bind()  # type: ignore[attr-defined]
    run_until_stopped(application, settings, http_options(settings), logging_config())


if __name__ == "__main__":
    run_job(main)
