"""Thin Ray Serve wrappers: one class per stage, for the stages that get replicas of their own.

Nothing here imports torch: a replica of the language model has no use for it.
"""

import asyncio
from collections.abc import Mapping

from cluster.settings import Settings
from serve.batch import Batch, Stage
from serve.config import AppConfig
from serve.graph import StageName
from serve.loading import Parts


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
