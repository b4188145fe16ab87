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
from train.pair import RankedRecommender, Recoded, TwoTowerRecommender
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
                found.recommenders["two_tower"] = self._asked_in(found, TwoTowerRecommender(model), model.vocabulary)
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
        two_tower = TwoTowerRecommender(retrieval)
        found.recommenders["champion_two_tower"] = self._asked_in(found, two_tower, retrieval.vocabulary)
        if self._may_be_asked(found, "the champion's ranker", cards["ranker"], champion.ranking.vocabulary):
            known = self._protocol.visible(self._protocol.assign(self._events))
            pair = pair_recommender(champion, known)
            found.recommenders["champion_two_tower_ranker"] = self._asked_in(found, pair, retrieval.vocabulary)

    def _asked_in(self, found: Contestants, recommender: Recommends, own: Vocabulary) -> Recommends:
        """As it is if its item codes are those that are asked in; a vocabulary that has grown has others."""
        return recommender if own.items == found.vocabulary.items else Recoded(recommender, own, found.vocabulary)

    def _may_be_asked(self, found: Contestants, name: str, card: ModelCard, vocabulary: Vocabulary) -> bool:
        """Whether a model knows this data and none of the answers; says why not."""
        version = self._dataset.manifest.data_version
        if card.data_version != version:
            found.left_out.append(
                f"{name} was trained on data version {card.data_version[:12]}, which is now {version[:12]}"
            )
            return False
        require_same_catalogue(name, vocabulary, found.vocabulary)
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


def pair_recommender(models: LoadedModels, events: pl.DataFrame) -> RankedRecommender:
    """A registered pair as it answers, in its own item codes. `events`: those that item features are computed from."""
    return RankedRecommender(
        models.retrieval,
        models.ranking,
        ItemFeatures(events, models.retrieval.vocabulary),
        RankingConfig.model_validate(models.cards["ranker"].config).num_candidates,
    )


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


def require_same_catalogue(name: str, vocabulary: Vocabulary, expected: Vocabulary) -> None:
    """Raise TowerlineError unless two vocabularies know the same items, whatever their codes."""
    ours, theirs = set(vocabulary.items), set(expected.items)
    if ours == theirs:
        return
    more, less = sorted(ours - theirs), sorted(theirs - ours)
    differences = [
        f"{len(items)} items that {where} does not have, {items[0]!r} for one"
        for items, where in ((more, "the data set"), (less, "the model"))
        if items
    ]
    raise TowerlineError(
        f"the vocabulary of {name} is not that of the data set: there are {' and '.join(differences)}. Train it again"
    )
