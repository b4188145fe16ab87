"""The process of one of our own systems: trains it as a task says and writes its lists.

    python -m benchmarks.our_system RUN_FOLDER

It reads the same task as a peer's runner (`benchmarks.peers.contract`). Retrieval and ranking are trained in this
process, without Ray. What a ranker is built on is kept for the next run that needs it; its seconds are counted again.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import torch
from pydantic import TypeAdapter

from benchmarks.peers.contract import Task
from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from data.offline.store import read_examples
from data.schema import USER_ID, VALUE
from train.candidates import ItemFeatures
from train.cases import Cases, cases, training_events
from train.loop import FitConfig
from train.models.ease import EASE, EASEConfig
from train.models.ials import IALS, IALSConfig
from train.models.item_item import ItemItem, ItemItemConfig
from train.models.popularity import Popularity, PopularityConfig
from train.pair import RankedRecommender, TwoTowerRecommender
from train.protocols import AnyProtocol
from train.ranking import RankingConfig, TrainedRanking, moment_t1, ranking_task, train_ranking, with_sources
from train.recommender import Recommends
from train.retrieval import RetrievalConfig, TrainedRetrieval, retrieval_task, train_retrieval
from train.scaling import Scaling
from train.training_rows import TrainingRows
from train.vocabulary import UNKNOWN, Vocabulary
from tune.space import apply

SOURCES: dict[str, tuple[Any, Any]] = {
    "popularity": (Popularity, PopularityConfig),
    "popularity_recent": (Popularity, PopularityConfig),
    "item_item": (ItemItem, ItemItemConfig),
    "ease": (EASE, EASEConfig),
    "ials": (IALS, IALSConfig),
}
KNOW_BY_HISTORY = ("item_item", "ease", "ials")
"""They know nothing of a user without one."""
RETRIEVAL = RetrievalConfig(fit=FitConfig(epochs=40, patience=5))
RANKING = RankingConfig(fit=FitConfig(epochs=15, patience=3))
"""What settings are laid over: as many epochs as pay."""
ALONE = Scaling(backend="none")
SECONDS_FILE = "seconds.json"
Trained = TypeVar("Trained", TrainedRetrieval, TrainedRanking)


@dataclass(frozen=True)
class OfTraining(Dataset):
    """A data set whose events are the training events: items are described by what the peers know too."""

    training: pl.DataFrame

    def events(self) -> pl.DataFrame:
        """The training events."""
        return self.training


class OurSystem:
    """One of our systems, as a task describes it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._dataset = open_dataset(Settings().home, task.extra["dataset"])
        if self._dataset.manifest.data_version != task.extra["data_version"]:
            raise TowerlineError(f"data set {self._dataset.name!r} was changed while it was measured; run it again")
        protocol: TypeAdapter[AnyProtocol] = TypeAdapter(AnyProtocol)
        self._protocol = protocol.validate_json(task.extra["protocol"])
        self._train_split = TrainingRows(protocol=self._protocol)
        self._examples = Path(task.extra["examples"])
        self._store = Path(task.extra["trained"])
        self.seconds_before = 0.0
        """Of what this run did not have to train again."""
        self.epochs = 1
        """Of the last training."""

    @cached_property
    def training(self) -> pl.DataFrame:
        """What may be learnt from."""
        return training_events(self._protocol, self._dataset.events())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The whole catalogue; what depends on values is of the training events."""
        dataset = self._dataset
        return Vocabulary.build(dataset.events(), dataset.items(), dataset.users(), self.training[VALUE])

    @cached_property
    def asked(self) -> Cases:
        """The questions."""
        events, users = self._dataset.events(), self._dataset.users()
        return cases(self._protocol, events, users, self.vocabulary, split=self._task.target)

    def recommender(self) -> Recommends:
        """The trained system."""
        name, settings = self._task.system, self._task.settings
        if name in SOURCES:
            kind, config = SOURCES[name]
            seed = {"seed": self._task.seed} if "seed" in config.model_fields else {}
            source: Any = kind(config(**settings, **seed))
            source.fit(self.training, self.vocabulary)
            recommends: Recommends = source
            return recommends
        if name == "two_tower":
            return TwoTowerRecommender(self._retrieval(self._retrieval_config(settings), self._train_split).model)
        if name == "two_tower_ranker":
            return self._pair(self._retrieval_config(settings["two_tower"]), self._ranking_config(settings[name]))
        raise TowerlineError(f"there is no system {name!r} of ours")

    def lists(self) -> dict[str, list[str]]:
        """Lists of items by user."""
        asked = self.asked
        ranked_BK = self.recommender().recommend(asked.rows, asked.exclude, self._task.count)
        named = (self.vocabulary.item_ids(codes[codes != UNKNOWN]) for codes in ranked_BK)
        everybody = dict(zip(asked.rows[USER_ID], named, strict=True))
        if self._task.system not in KNOW_BY_HISTORY:
            return everybody
        met = zip(everybody.items(), asked.exclude, strict=True)
        return {user: items for (user, items), codes in met if len(codes)}

    def _retrieval_config(self, settings: dict[str, Any]) -> RetrievalConfig:
        seed = self._task.seed
        return apply(RETRIEVAL, settings | {"seed": seed, "fit.seed": seed})

    def _ranking_config(self, settings: dict[str, Any]) -> RankingConfig:
        seed = self._task.seed
        return apply(RANKING, settings | {"seed": seed, "fit.seed": seed})

    def _retrieval(self, config: RetrievalConfig, rows: TrainingRows) -> TrainedRetrieval:
        task = retrieval_task(self._dataset, self._examples, config, rows)
        name = f"retrieval-{_digest(config.model_dump_json(), str(rows))}"
        return self._trained(name, lambda: train_retrieval(task, ALONE, name=name, storage=self._store))

    def _pair(self, retrieval_config: RetrievalConfig, config: RankingConfig) -> Recommends:
        """Retrieval; retrieval on the past, which finds the ranker's candidates; the ranker."""
        retrieval = self._retrieval(retrieval_config, self._train_split)
        examples = self._protocol.assign(read_examples(self._examples))
        fixed = retrieval_config.fit.model_copy(update={"epochs": retrieval.best_epoch + 1, "metric": None})
        past = TrainingRows(protocol=self._protocol, before=moment_t1(examples, config.past_share))
        past_retrieval = self._retrieval(retrieval_config.model_copy(update={"fit": fixed}), past)
        known = OfTraining(**vars(self._dataset), training=self.training)
        name = f"ranking-{_digest(retrieval_config.model_dump_json(), config.model_dump_json())}"
        lists = self._store / f"{name}-candidates"
        task = ranking_task(
            known,
            examples,
            config,
            past_retrieval=past_retrieval.model,
            retrieval=retrieval.model,
            folder=lists,
        )
        ranking = self._trained(name, lambda: train_ranking(task, ALONE, name=name, storage=self._store))
        shutil.rmtree(lists)
        items = ItemFeatures(known.events(), retrieval.model.vocabulary)
        beside = with_sources(retrieval.model, config, self.training)
        return RankedRecommender(beside, ranking.model, items, config.num_candidates)

    def _trained(self, name: str, train: Callable[[], Trained]) -> Trained:
        """A training, or what came of it when another run did it."""
        seconds = self._store / name / SECONDS_FILE
        if seconds.exists():
            self.seconds_before += float(json.loads(seconds.read_text()))
            trained = train()
        else:
            started = time.monotonic()
            trained = train()
            write_atomically(seconds, json.dumps(time.monotonic() - started))
        self.epochs = trained.best_epoch + 1
        return trained


def main(run: str) -> None:
    """Train, recommend."""
    task = Task.read(Path(run))
    torch.set_num_threads(task.threads)
    system = OurSystem(task)
    lists = system.lists()
    task.answer(lists, seconds_before=system.seconds_before, epochs=system.epochs)


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main(sys.argv[1])
