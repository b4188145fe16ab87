"""From the registry and the stores to what a replica needs, imported and loaded when it is first asked for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.features import views
from data.online.store import OnlineStore, open_online_store
from serve.batch import Stage
from serve.config import AppConfig
from serve.edition import Edition
from serve.graph import StageName
from serve.reranking_policy import RerankingPolicy, policy_in_force
from train.ledger import read_ledger

if TYPE_CHECKING:
    from serve.new_items import ItemsOnDisk, NewItems
    from serve.stages.explain import Explain
    from serve.stages.shards import Election
    from serve.variant import Variant
    from train.index import Floats, Index
    from train.models.retrieval import RetrievalModel
    from train.registry import LoadedModels

Made = TypeVar("Made")

logger = logging.getLogger(__name__)


def online_store(settings: Settings, dataset: str, history_length: int) -> OnlineStore:
    """The online store of a data set, for models whose features carry so much history."""
    return open_online_store(settings, dataset, views(history_length))


def explain_stage(config: AppConfig, beside: int = 0) -> "Explain":
    """The language model's stage: it belongs to no variant. `beside`: what its model writes besides, at once."""
    from cluster.assets import SMOLLM2, fetch
    from serve.stages.explain import Explain

    return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, config.explain, beside)


def reranking_policy(settings: Settings, config: AppConfig) -> RerankingPolicy | None:
    """Whom to re-rank; None: nobody, because `config` does not ask for it or no evaluation speaks for it."""
    if config.graph.rerank == "off":
        return None
    from cluster.assets import SMOLLM2
    from serve.stages.rerank import prompt_version

    return policy_in_force(settings.home, config.dataset, SMOLLM2.files[0].sha256, prompt_version())


def rerank_stage(config: AppConfig, policy: RerankingPolicy) -> Stage:
    """The stage that re-ranks: it belongs to no variant."""
    from cluster.assets import SMOLLM2, fetch
    from serve.language_model import TextLikelihood
    from serve.stages.rerank import Rerank

    weights = fetch(SMOLLM2) / SMOLLM2.files[0].name
    return Rerank(TextLikelihood(weights, threads=config.explain.threads), policy)


class Trained:
    """The models as they were trained, of the variant that was asked for last: new items do not load it again.

    Several threads may ask.
    """

    def __init__(self, settings: Settings, config: AppConfig) -> None:
        self._settings = settings
        self._config = config
        self._kept: tuple[str, LoadedModels] | None = None
        self._lock = Lock()

    def models(self, variant: str) -> "LoadedModels":
        """The models of a variant. Raises TowerlineError as `train.registry.load_pair`."""
        from train.registry import find_pair, load_pair

        with self._lock:
            if self._kept is None or self._kept[0] != variant:
                address = self._settings.tracking_uri
                models = load_pair(address, find_pair(address, self._config.dataset, variant))
                models.retrieval.make_index = partial(_index, self._config)
                self._kept = variant, models
            return self._kept[1]

    @cached_property
    def items(self) -> "ItemsOnDisk":
        """Of the data set."""
        from serve.new_items import ItemsOnDisk

        return ItemsOnDisk(self._settings.home, self._config.dataset)


class Parts:
    """The parts that one variant has in one replica. Properties raise `TowerlineError` where a part is not usable."""

    def __init__(
        self,
        settings: Settings,
        config: AppConfig,
        variant: str,
        reranking: RerankingPolicy | None = None,
        *,
        new_items: str | None = None,
        trained: Trained | None = None,
    ) -> None:
        """`variant`: its name. `reranking`: whom to re-rank, needed for the stages that do.

        `new_items`: by their digest, those that the data set has now if None. `trained`: of the process.
        """
        self._settings = settings
        self._config = config
        self._name = variant
        self._reranking = reranking
        self._asked_items = new_items
        self._trained = trained or Trained(settings, config)

    @cached_property
    def _models(self) -> "LoadedModels":
        return self._trained.models(self._name)

    @cached_property
    def _new_items(self) -> "NewItems":
        vocabulary, items = self._models.retrieval.vocabulary, self._trained.items
        return items.new_to(vocabulary) if self._asked_items is None else items.of_digest(self._asked_items, vocabulary)

    @property
    def edition(self) -> Edition:
        """What these are the parts of."""
        return Edition(self._models.variant, self._new_items.digest)

    @cached_property
    def variant(self) -> "Variant":
        """The models, new items included. They are of this code's features."""
        from serve.variant import Variant

        return Variant.of(self._models, self._new_items)

    @cached_property
    def store(self) -> OnlineStore:
        """The online store. It holds what the variant was trained on."""
        from train.card import require_stored_features

        store = online_store(self._settings, self._config.dataset, self.variant.history_length)
        if store.published_version() is None:
            for card in self._models.cards.values():
                require_stored_features(card, store.fingerprints())
        return store

    def fallbacks(self) -> dict[StageName, Stage]:
        """What takes the place of the stages that an answer can do without."""
        from serve.stages.fallbacks import Popularity, RankersOrder, RetrievalOrder, Unchanged

        return {
            "retrieval": Popularity(self.variant, self._config.graph.candidates, self._config.rules),
            "ranking": RetrievalOrder(self.variant.catalogue),
            "rerank": RankersOrder(),
            "diversity": Unchanged(),
        }

    def stage(self, name: StageName) -> Stage:
        """A stage, ready to run."""
        graph = self._config.graph
        stage: Stage
        match name:
            case "features":
                from serve.stages.features import Features

                stage = Features(self.variant.catalogue, self.store)
            case "retrieval":
                from serve.stages.retrieval import Retrieval

                stage = Retrieval(self.variant, graph.candidates, self._config.rules)
            case "filter":
                from serve.stages.filter import Filter

                stage = Filter(self.variant.catalogue, graph.candidates, self._config.rules)
            case "ranking":
                from serve.stages.ranking import Ranking

                stage = Ranking(self.variant, self.store)
            case "diversity":
                from serve.stages.diversity import Diversity

                stage = Diversity(self.variant, graph.diversity_lambda)
            case "limit":
                from serve.stages.filter import Limit

                stage = Limit(self.variant.catalogue, self._config.rules)
            case _:
                stage = self._language_model_stage(name)
        return stage

    def shard(self, number: int) -> Stage:
        """The retrieval of one shard of the catalogue."""
        from serve.stages.shards import RetrievalShard

        graph, rules = self._config.graph, self._config.rules
        return RetrievalShard(self.variant, graph.candidates, rules, number=number, shards=graph.retrieval_shards)

    def election(self) -> "Election":
        """What makes one answer of those of all shards."""
        from serve.stages.shards import Election

        return Election(self.variant, self._config.graph.candidates, self._config.rules)

    def _language_model_stage(self, name: Literal["profile", "rerank", "facts", "explain"]) -> Stage:
        match name:
            case "profile":
                from serve.stages.profile import GatherProfiles

                return GatherProfiles(self.variant.catalogue, self._policy.candidates)
            case "rerank":
                return rerank_stage(self._config, self._policy)
            case "facts":
                from serve.stages.facts import GatherFacts

                return GatherFacts(self.variant.catalogue, self._config.graph.explained_items)
            case "explain":
                return explain_stage(self._config)

    @property
    def _policy(self) -> RerankingPolicy:
        if self._reranking is None:
            raise TowerlineError(
                f"graph.rerank is {self._config.graph.rerank!r}, but no evaluation says whom to re-rank; run `python "
                f'-m jobs.evaluate_reranking --dataset {self._config.dataset}` or set it to "off"'
            )
        return self._reranking


def _index(config: AppConfig, model: "RetrievalModel") -> "Index":
    """What searches the catalogue of a model as it was trained."""
    from train.index import ExactIndex
    from train.index_choice import choose_index

    if len(model.ensemble.config.finders) > 1:
        # Every source scores the whole catalogue, and what each of them thinks of the others' candidates counts.
        return ExactIndex(model.item_vectors_ID)

    def queries(count: int) -> "Floats":
        return model.vectors_of(model.imagined_users(count))

    return choose_index(model.item_vectors_ID, queries, config.graph.candidates, config.index)


@dataclass(frozen=True)
class First(Generic[Made]):
    """What a replica begins with."""

    champion: str
    """The variant that the registry names."""
    serving: str
    """The variant that was made, of which `made` is a part."""
    made: Made
    refused: str | None
    """Why the champion is not the one that serves."""


def make_first(settings: Settings, config: AppConfig, make: Callable[[str], Made]) -> First[Made]:
    """What `make` gives for the champion or, where that cannot be made, for the champion before it, and so on.

    A replica that is started while the champion is broken thus serves what the others still serve.

    Raises:
        TowerlineError: there is no champion, or none that can be made; it tells of the present one.
    """
    from train.registry import champion_pair

    champion = champion_pair(settings.tracking_uri, config.dataset).variant
    try:
        return First(champion, champion, make(champion), refused=None)
    except TowerlineError as error:
        for variant in read_ledger(settings.tracking_uri, config.dataset).earlier():
            try:
                made = make(variant)
            except TowerlineError as older:
                logger.warning("variant %s cannot be served either: %s", variant, older)
                continue
            logger.warning("variant %s is served, not the champion %s: %s", variant, champion, error)
            return First(champion, variant, made, refused=str(error))
        raise
