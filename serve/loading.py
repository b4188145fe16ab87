"""From the registry and the stores to what a replica needs, loaded when it is first asked for."""

from functools import cached_property

from cluster.assets import SMOLLM2, fetch
from cluster.settings import Settings
from data.online_store import OnlineStore
from serve.batch import Stage
from serve.config import AppConfig
from serve.graph import StageName
from serve.stages.explain import Explain
from serve.stages.facts import GatherFacts
from serve.stages.features import Features
from serve.stages.filter import Filter
from serve.stages.ranking import Ranking
from serve.stages.retrieval import Retrieval
from serve.variant import Variant


class Parts:
    """The parts of one replica. A replica of the language model never asks for the variant, and so never loads it."""

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._settings = settings
        self._config = config

    @cached_property
    def variant(self) -> Variant:
        """The champion. Raises `TowerlineError` if there is none or it does not fit this code's features."""
        raise NotImplementedError

    @cached_property
    def store(self) -> OnlineStore:
        """The online store of the data set."""
        return OnlineStore(self._settings.home / "online" / f"{self._config.dataset}.db")

    def stage(self, name: StageName) -> Stage:
        """A stage, ready to run."""
        graph = self._config.graph
        match name:
            case "features":
                return Features(self.variant, self.store)
            case "retrieval":
                return Retrieval(self.variant, graph.candidates)
            case "filter":
                return Filter(self.variant.catalogue, graph.candidates)
            case "ranking":
                return Ranking(self.variant, self.store)
            case "facts":
                return GatherFacts(self.variant.catalogue, graph.explained_items)
            case "explain":
                return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, self._config.explain)
