"""Who can be evaluated by a protocol: the candidate sources, and what is registered if it has not seen the answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.features import HISTORY_LENGTH, with_sequence
from data.schema import SPLIT, VALUE
from data.splits import TEST, VALIDATION
from train.candidates import ItemFeatures
from train.card import ModelCard
from train.cases import training_events
from train.models.ease import EASE
from train.models.ials import IALS
from train.models.item_item import ItemItem
from train.models.popularity import Popularity, PopularityConfig
from train.pair import RankedRecommender, TwoTowerRecommender
from train.protocols import EvaluationProtocol
from train.ranking import RankingConfig
from train.recommender import Recommender, Recommends
from train.registry import LoadedModels, load_challenger, load_champion
from train.training_rows import TrainingRows
from train.vocabulary import Vocabulary

RECENT = PopularityConfig(half_life_days=7)


@dataclass
class Contestants:
    """Recommenders that may be asked, and why others may not."""

    vocabulary: Vocabulary
    recommenders: dict[str, Recommends] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """A sentence for each that is not among them."""
    history_length: int = HISTORY_LENGTH
    """Events of a user's history that the registered models were trained with."""


class Registration:
    """Looks at what is registered for a data set and takes what a protocol allows."""

    def __init__(self, dataset: Dataset, protocol: EvaluationProtocol, tracking_uri: str) -> None:
        self._dataset, self._protocol, self._tracking_uri = dataset, protocol, tracking_uri
        self._events = with_sequence(dataset.events())

    def contestants(self) -> Contestants:
        """The challenger and the champion, as far as they may be asked; no source yet."""
        found = Contestants(dataset_vocabulary(self._dataset, self._protocol))
        try:
            model, card = load_challenger(self._tracking_uri, self._dataset.name)
            if self._may_be_asked(found, "the challenger", card, model.vocabulary):
                found.recommenders["two_tower"] = TwoTowerRecommender(model)
        except TowerlineError as error:
            found.left_out.append(f"no challenger: {error}")
        try:
            self._add_champion(found, load_champion(self._tracking_uri, self._dataset.name))
        except TowerlineError as error:
            found.left_out.append(f"no champion: {error}")
        return found

    def _add_champion(self, found: Contestants, champion: LoadedModels) -> None:
        retrieval, cards = champion.retrieval, champion.cards
        name = f"the champion's two-tower (variant {champion.variant})"
        if not self._may_be_asked(found, name, cards["two-tower"], retrieval.vocabulary):
            return
        found.recommenders["champion_two_tower"] = TwoTowerRecommender(retrieval)
        if self._may_be_asked(found, "the champion's ranker", cards["ranker"], champion.ranking.vocabulary):
            known = self._protocol.visible(self._protocol.assign(self._events))
            found.recommenders["champion_two_tower_ranker"] = RankedRecommender(
                retrieval,
                champion.ranking,
                ItemFeatures(known, found.vocabulary),
                RankingConfig.model_validate(cards["ranker"].config).num_candidates,
            )

    def _may_be_asked(self, found: Contestants, name: str, card: ModelCard, vocabulary: Vocabulary) -> bool:
        """Whether a model knows this data and none of the answers; says why not."""
        version = self._dataset.manifest.data_version
        if card.data_version != version:
            found.left_out.append(
                f"{name} was trained on data version {card.data_version[:12]}, which is now {version[:12]}"
            )
            return False
        require_same_items(name, vocabulary, found.vocabulary)
        asked = self._protocol.assign(self._events).filter(pl.col(SPLIT) == TEST).height
        rows = card.trained_on
        chosen_by = TrainingRows(protocol=rows.protocol, splits=(VALIDATION,))
        for how, each in (("trained on", rows), ("chosen by", chosen_by)):
            if seen := each.overlap(self._protocol, self._events):
                found.left_out.append(
                    f"{name} was {how} {seen:,} of the {asked:,} test events ({each}): its figures would mean nothing; "
                    "--refit trains the same configuration on the protocol's train split"
                )
                return False
        found.history_length = card.history_length
        return True


def dataset_vocabulary(dataset: Dataset, protocol: EvaluationProtocol) -> Vocabulary:
    """The vocabulary that a model trained by the protocol has."""
    events = dataset.events()
    values = training_events(protocol, events)[VALUE]
    return Vocabulary.build(events, dataset.items(), dataset.users(), values)


def add_sources(contestants: Contestants, protocol: EvaluationProtocol, events: pl.DataFrame) -> None:
    """Fit every candidate source on the protocol's train split; one that does not fit this machine is left out."""
    training = training_events(protocol, events)
    sources: Mapping[str, Recommender] = {
        "popularity": Popularity(),
        "popularity_recent": Popularity(RECENT),
        "item_item": ItemItem(),
        "ease": EASE(),
        "ials": IALS(),
    }
    for name, source in sources.items():
        try:
            source.fit(training, contestants.vocabulary)
        except TowerlineError as error:
            contestants.left_out.append(f"{name} is left out: {error}")
        else:
            contestants.recommenders[name] = source


def require_same_items(name: str, vocabulary: Vocabulary, expected: Vocabulary) -> None:
    """Raise TowerlineError unless the codes of two vocabularies mean the same items."""
    if vocabulary.items == expected.items:
        return
    pairs = zip(vocabulary.items, expected.items, strict=False)
    code = next((code for code, (ours, theirs) in enumerate(pairs, start=1) if ours != theirs), None)
    first = (
        f"item code {code} is {vocabulary.items[code - 1]!r} here and {expected.items[code - 1]!r} there"
        if code
        else f"it knows {vocabulary.num_items} items instead of {expected.num_items}"
    )
    raise TowerlineError(
        f"the vocabulary of {name} is not that of the data set: {first}; what it recommends would be other items. "
        "Train it again"
    )
