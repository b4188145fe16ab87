"""From the registry and the stores to what a replica needs, imported and loaded when it is first asked for."""

from functools import cached_property
from typing import TYPE_CHECKING

from cluster.settings import Settings
from data.features import views
from data.online.store import OnlineStore, open_online_store
from serve.batch import Stage
from serve.config import AppConfig
from serve.graph import StageName

if TYPE_CHECKING:
    from serve.variant import Variant
    from train.registry import LoadedModels


def online_store(settings: Settings, dataset: str, history_length: int) -> OnlineStore:
    """The online store of a data set, for models whose features carry so much history."""
    return open_online_store(settings, dataset, views(history_length))


class Parts:
    """The parts of one replica. A replica of the language model never asks for the variant, and so never loads it."""

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._settings = settings
        self._config = config

    @cached_property
    def _models(self) -> "LoadedModels":
        from train.registry import load_champion

        return load_champion(self._settings.tracking_uri, self._config.dataset)

    @cached_property
    def variant(self) -> "Variant":
        """The champion. Raises `TowerlineError` if there is none or it does not fit this code's features."""
        from serve.variant import Variant

        return Variant.of(self._models)

    @cached_property
    def store(self) -> OnlineStore:
        """The online store. Raises `TowerlineError` if it does not hold what the champion was trained on."""
        from train.registry import require_stored_features

        store = online_store(self._settings, self._config.dataset, self.variant.history_length)
        if store.published_version() is None:
            for card in self._models.cards.values():
                require_stored_features(card, store.fingerprints())
        return store

    def stage(self, name: StageName) -> Stage:
        """A stage, ready to run."""
        graph = self._config.graph
        match name:
            case "features":
                from serve.stages.features import Features

                return Features(self.variant.catalogue, self.store)
            case "retrieval":
                from serve.stages.retrieval import Retrieval

                return Retrieval(self.variant, graph.candidates)
            case "filter":
                from serve.stages.filter import Filter

                return Filter(self.variant.catalogue, graph.candidates)
            case "ranking":
                from serve.stages.ranking import Ranking

                return Ranking(self.variant, self.store)
            case "facts":
                from serve.stages.facts import GatherFacts

                return GatherFacts(self.variant.catalogue, graph.explained_items)
            case "explain":
                from cluster.assets import SMOLLM2, fetch
                from serve.stages.explain import Explain

                return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, self._config.explain)
