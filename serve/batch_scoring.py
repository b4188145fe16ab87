"""Recommendations for many users at one moment, by the very graph that the endpoint answers with, all of it in process.

What one process does of a run (`serve.batch_run`): it makes parts, each of which is there whole or not at all.
"""

import asyncio
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from cluster.files import sync
from cluster.settings import Settings
from data.features import TIME
from data.schema import ITEM_ID, USER_ID
from serve.answers import Answers, call_of
from serve.batch import Stage
from serve.config import AppConfig
from serve.graph import Graph, GraphConfig, StageName
from serve.loading import Parts, reranking_policy
from serve.schemas import RecommendRequest, RecommendResponse

PROVENANCE = "towerline"
"""Key of the manifest in each part's metadata."""

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    USER_ID: pl.String,
    "known_user": pl.Boolean,
    "rank": pl.Int32,
    ITEM_ID: pl.String,
    "score": pl.Float32,
    "degraded": pl.List(pl.String),
    "variant": pl.String,
    "at": TIME,
}


class Provenance(BaseModel):
    """What the recommendations of a run were made of, and by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    variant: str
    models: dict[str, str]
    """Model name to registry version."""
    data_version: str
    """Of the data set that is published to the online store; events that were appended since come on top."""
    feature_views: dict[str, str]
    """Feature view to the fingerprint of its definition."""
    at: datetime
    """The moment as of which features are computed."""
    count: int
    """Items per user."""
    users: int
    users_hash: str
    """SHA-256 over the users, in order."""
    graph: GraphConfig
    rules: dict[str, object]
    git_commit: str
    versions: dict[str, str]
    """Of the libraries."""


@dataclass(frozen=True)
class Scoring:
    """Makes parts. Picklable; what it loads stays in the process for the next part."""

    settings: Settings
    config: AppConfig
    provenance: Provenance
    folder: Path

    def __call__(self, part: tuple[int, Sequence[str]]) -> int:
        """Write the part of this number with the recommendations for these users; gives the number of rows."""
        number, users = part
        key = (self.settings, self.config.model_dump_json(), self.provenance.variant)
        answers = asyncio.run(_loaded(*key).answers(users, self.provenance.count, self.provenance.at))
        table = _table(answers, self.provenance.at)
        path = part_file(self.folder, number)
        unfinished = path.with_name(f".{path.name}.part")
        table.write_parquet(unfinished, metadata={PROVENANCE: self.provenance.model_dump_json()})
        sync(unfinished)
        unfinished.replace(path)
        sync(self.folder)
        return table.height


def part_file(folder: Path, number: int) -> Path:
    """File of a part."""
    return folder / f"part-{number:05d}.parquet"


class _Loaded:
    """The stages of a variant in one process."""

    def __init__(self, settings: Settings, config: AppConfig, variant: str) -> None:
        policy = reranking_policy(settings, config)
        rerank = config.graph.rerank if policy is not None else "off"
        self._config = config.graph.model_copy(update={"rerank": rerank}).here()
        self._below = policy.below_events if policy is not None else 0
        parts = Parts(settings, config, variant, policy)
        self._stages: dict[StageName, Stage] = {name: parts.stage(name) for name in self._config.in_process()}
        self._fallbacks = parts.fallbacks()
        self._answers = Answers("batch", parts.variant)

    async def answers(self, users: Sequence[str], count: int, at: datetime) -> list[RecommendResponse]:
        """For users in order, in full batches, without a deadline."""
        graph = Graph(self._config, self._stages, {}, self._fallbacks, lambda: at, rerank_below=self._below)
        requests = [RecommendRequest(user_id=user, count=count) for user in users]
        calls = [replace(call_of(each, str(number)), budget_s=math.inf) for number, each in enumerate(requests)]
        try:
            outcomes = await asyncio.gather(*map(graph.recommend, calls))
        finally:
            graph.close()
        return [self._answers.response(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]


@functools.lru_cache(maxsize=1)
def _loaded(settings: Settings, config: str, variant: str) -> _Loaded:
    return _Loaded(settings, AppConfig.model_validate_json(config), variant)


def _table(answers: Sequence[RecommendResponse], at: datetime) -> pl.DataFrame:
    """A row per user and item."""
    rows = [
        (answer.user_id, answer.known_user, rank, item.item_id, item.score, answer.degraded, answer.variant, at)
        for answer in answers
        for rank, item in enumerate(answer.items, start=1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
