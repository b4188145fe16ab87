"""The same stages as a service of BentoML; runs in an environment that holds it (`serving_bento.txt`) beside our own.

    BENCH_SERVING_DATASET=movielens-100k python -m bentoml serve benchmarks.serving_bento:Recommender

As BentoML's documentation recommends where the CPU is what counts: a worker for each core, and adaptive batching of the
requests that come to a worker.
"""
# No `from __future__ import annotations` here: BentoML reads the types of the endpoint.

import os
import uuid
from datetime import UTC, datetime
from typing import Any

import bentoml  # type: ignore[import-not-found]
from pydantic import BaseModel, model_validator

from benchmarks.serving_load import PATH, PATIENCE_S
from benchmarks.serving_plain import DATASET
from cluster.settings import Settings
from serve.answers import Answers, call_of
from serve.batch import Batch
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.graph import RANKED, GraphConfig, Outcome
from serve.loading import Parts
from serve.schemas import RecommendRequest, RecommendResponse
from serve.steps import run_stages
from train.registry import champion_pair


class Body(BaseModel):
    """One request, as the list that BentoML batches."""

    requests: list[RecommendRequest]

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, body: Any) -> Any:
        return {"requests": [body]}


class Answer(bentoml.IODescriptor, RecommendResponse):  # type: ignore[misc]
    """One response, out of the list that BentoML splits."""

    @classmethod
    async def to_http_response(cls, obj: list[RecommendResponse], serde: Any) -> Any:
        """Called by BentoML with a list of one."""
        (response,) = obj
        return await super().to_http_response(response, serde)


@bentoml.service(workers="cpu_count", traffic={"timeout": PATIENCE_S}, logging={"access": {"enabled": False}})
class Recommender:
    """Answers a batch of requests with the champion; reads the data set's name from the environment."""

    def __init__(self) -> None:
        settings, dataset, replica = Settings(), os.environ[DATASET], f"bentoml-{os.getpid()}"
        parts = Parts(settings, AppConfig(dataset=dataset), champion_pair(settings.tracking_uri, dataset).variant)
        self._stages = [(name, parts.stage(name)) for name in RANKED]
        self._answers = Answers(replica, parts.variant)
        self._decisions = DecisionLog(settings.home / "decisions" / dataset, replica)

    @bentoml.api(  # type: ignore[untyped-decorator]
        route=PATH, input_spec=Body, output_spec=Answer, batchable=True, max_batch_size=GraphConfig().max_batch_size
    )
    def recommend(self, requests: list[RecommendRequest]) -> list[RecommendResponse]:
        """Items for each user."""
        calls = tuple(call_of(request, uuid.uuid4().hex) for request in requests)
        batch = run_stages(self._stages, Batch(calls=calls, at=datetime.now(UTC)))
        responses = []
        for row, call in enumerate(calls):
            outcome = Outcome(batch.select([row]), (), batch.timings_ms)
            response = self._answers.response(call, outcome)
            self._decisions.write(self._answers.decision(call, outcome, response.items))
            responses.append(response)
        return responses
