"""The order in which the pair that serves is made, on one data set.

1. retrieval on the train split: what is compared and what tunes the ranker;
2. retrieval on the train split's events before T1, with the same configuration: it finds the ranker's candidates;
3. the ranker on the train split's events after T1;
4. the comparison on the test events, by one protocol;
5. retrieval on all events, for as many epochs as were best before: what serves.

With an `origin`, a registered two-tower, steps 1 and 5 go on from it with what it has not learnt, and step 2, which
must not know what came after T1, trains from scratch in its vocabulary as the first of the line did.

The sources whose scores the ranker reads are fitted wherever a two-tower is used with it, on all that this one has
learnt: they go on from nothing.
"""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cluster.errors import TowerlineError
from cluster.provenance import git_commit, versions
from data.known_events import KnownEvents
from data.offline.store import read_feature_manifest
from data.schema import SPLIT
from data.splits import TEST
from train.candidates import ItemFeatures
from train.card import ModelCard, curve_of
from train.cases import training_events
from train.distillation import distil_retrieval
from train.evaluation import Measurements, measure
from train.gate import PAIR, GateConfig
from train.loop import FitConfig
from train.models.candidate_features import ranker_fingerprints
from train.models.item_item import ItemItem
from train.models.popularity import Popularity
from train.models.retrieval import RetrievalModel
from train.pair import RankedRecommender, TwoTowerRecommender
from train.pair_figures import LATENCY, latency_p95_ms, prediction_figures, with_pair_figures
from train.promotion import Decision, promote
from train.ranking import (
    RankingConfig,
    RankingTaskConfig,
    TrainedRanking,
    moment_t1,
    ranking_task,
    train_ranking,
    with_sources,
)
from train.recommender import Recommender, Recommends
from train.registry import (
    CHALLENGER,
    RegisteredPair,
    find_pair,
    load_challenger,
    register_ranking,
    register_retrieval,
)
from train.retrieval import (
    RetrievalConfig,
    RetrievalTaskConfig,
    TrainedRetrieval,
    retrieval_task,
    train_retrieval,
)
from train.tracking import start_run
from train.training_rows import TrainingRows
from train.vocabulary import Vocabulary
from train.workplace import Workplace


@dataclass(frozen=True)
class Workflow(Workplace):
    """The steps, each a method, on one data set."""

    def retrieval_task(
        self, config: RetrievalConfig, rows: TrainingRows | None = None, start: Path | None = None
    ) -> RetrievalTaskConfig:
        """What to train for a two-tower on these rows, the train split if None; `start`: the folder of the origin."""
        known = self.origin.model.vocabulary if self.origin else None
        return retrieval_task(
            self.dataset, self.examples_folder, config, rows or self.train_split, start=start, known=known
        )

    def ranking_task(
        self, config: RankingConfig, past: RetrievalModel, retrieval: RetrievalModel, folder: Path
    ) -> RankingTaskConfig:
        """What to train for a ranker; the candidate lists are written into `folder`."""
        return ranking_task(
            self.dataset,
            self.examples,
            config,
            past_retrieval=past,
            retrieval=retrieval,
            folder=folder,
            events=self.known_events,
            learnt=self.train_split.seen(self.examples),
        )

    def train_retrieval(self, config: RetrievalConfig, teacher: RetrievalModel | None = None) -> TrainedRetrieval:
        """Step 1: on the train split, the best epoch by the validation events.

        `teacher`: of a student (`config.distillation`), if there is one that has learnt from the same rows.
        """
        return self._fit_retrieval("retrieval", config, self.train_split, teacher)

    def train_retrieval_again(self, config: RetrievalConfig, epochs: int) -> TrainedRetrieval:
        """Step 1 for as many epochs as were best before, by whatever protocol: the last epoch is kept."""
        return self._fit_retrieval("retrieval-again", _fixed(config, epochs), self.train_split)

    def train_past_retrieval(self, config: RetrievalConfig, epochs: int, past_share: float) -> TrainedRetrieval:
        """Step 2: on the train split before T1, from scratch."""
        if self.origin:
            config, epochs = RetrievalConfig.model_validate(self.origin.parent.config), self.origin.parent.epochs
        rows = TrainingRows(protocol=self.protocol, before=moment_t1(self.examples, past_share))
        return self._fit_retrieval("retrieval-before-t1", _fixed(config, epochs), rows)

    def train_ranking(self, config: RankingConfig, past: RetrievalModel, retrieval: RetrievalModel) -> TrainedRanking:
        """Step 3: on the train split after T1, the best epoch by the validation events."""
        name = self.name_of("ranking", {"config": config.model_dump(mode="json"), "retrieval": digest_of(retrieval)})
        return train_ranking(
            self.ranking_task(config, past, retrieval, self.storage / name / "candidates"),
            self.scaling,
            name=name,
            storage=self.storage,
            tracking=self.tracking("ranking"),
            progress=self.progress,
        )

    def with_sources(self, retrieval: RetrievalModel, config: RankingConfig, rows: TrainingRows) -> RetrievalModel:
        """The two-tower with the ranker's sources, fitted on all that training on these rows, and before, told it."""
        return with_sources(retrieval, config, rows.seen(self.examples))

    def compare(
        self, retrieval: RetrievalModel, ranking: TrainedRanking | None = None, num_candidates: int = 100
    ) -> Measurements:
        """Step 4: the baselines, the two-tower and, if given, the two-tower with the ranker, on the test events."""
        vocabulary = retrieval.vocabulary
        recommenders = self.baselines(vocabulary)
        recommenders["two_tower"] = TwoTowerRecommender(retrieval)
        if ranking is None:
            return self.measure(recommenders, vocabulary)
        items = ItemFeatures(self.known_events, vocabulary)
        beside = self.with_sources(retrieval, ranking.config, self.train_split)
        pair = recommenders[PAIR] = RankedRecommender(beside, ranking.model, items, num_candidates)
        asked, answers = self.cases(vocabulary), self.known_events.filter(pl.col(SPLIT) == TEST)
        figures = {LATENCY: latency_p95_ms(pair, asked), **prediction_figures(pair, ranking.model, asked, answers)}
        return with_pair_figures(self.measure(recommenders, vocabulary), PAIR, figures)

    def baselines(self, vocabulary: Vocabulary) -> dict[str, Recommends]:
        """What the models are measured against, fitted on the train split."""
        train_events = training_events(self.protocol, self.dataset.events())
        baselines: dict[str, Recommender] = {"popularity": Popularity(), "item_item": ItemItem()}
        for baseline in baselines.values():
            baseline.fit(train_events, vocabulary)
        return dict(baselines)

    def measure(self, recommenders: Mapping[str, Recommends], vocabulary: Vocabulary) -> Measurements:
        """Any recommenders on the test events."""
        return measure(recommenders, self.cases(vocabulary), self.dataset.items())

    def refit_retrieval(
        self, config: RetrievalConfig, epochs: int, teacher: RetrievalModel | None = None
    ) -> TrainedRetrieval:
        """Step 5: on all events. `teacher`: as for step 1."""
        return self._fit_retrieval("retrieval-all", _fixed(config, epochs), self.all_events, teacher)

    def register_challenger(
        self,
        trained: TrainedRetrieval,
        config: RetrievalConfig,
        measured: Measurements,
        alias: str | None = CHALLENGER,
    ) -> str:
        """Register the two-tower of step 1, with no alias if it is to challenge nobody; returns its version."""
        card = self._card(uuid.uuid4().hex, trained, config, self.train_split, measured)
        with start_run(self.tracking("register challenger")) as run:
            return register_retrieval(run, trained.model, card, self.dataset.items(), alias)

    def register_pair(
        self,
        retrieval: TrainedRetrieval,
        retrieval_config: RetrievalConfig,
        ranking: TrainedRanking,
        ranking_config: RankingConfig,
        measured: Measurements,
    ) -> RegisteredPair:
        """Register the models of steps 3 and 5 as a variant, which answers nobody before it is promoted.

        The ranker's sources go with the two-tower, fitted on all events like it.
        """
        variant = uuid.uuid4().hex
        sources = ranking_config.ensemble.names
        retrieval_card = self._card(variant, retrieval, retrieval_config, self.all_events, measured, sources=sources)
        after_t1 = TrainingRows(protocol=self.protocol, since=moment_t1(self.examples, ranking_config.past_share))
        ranking_card = self._card(variant, ranking, ranking_config, after_t1, measured, sources=sources)
        beside = self.with_sources(retrieval.model, ranking_config, self.all_events)
        with start_run(self.tracking("register pair")) as run:
            run.log_metrics({name.replace("/", "."): value for name, value in measured.evaluation.figures.items()})
            register_retrieval(run, beside, retrieval_card, self.dataset.items())
            register_ranking(run, ranking.model, ranking_card, measured.values)
        return find_pair(self.settings.tracking_uri, self.dataset.name, variant)

    def promote(self, pair: RegisteredPair, config: GateConfig | None = None, force: str | None = None) -> Decision:
        """Make a registered pair the champion, if it passes the gate or `force` says why it need not."""
        return promote(
            self.settings.tracking_uri, self.dataset.name, pair.variant, config, force, home=self.settings.home
        )

    def load_challenger(self) -> tuple[RetrievalModel, RetrievalConfig, int]:
        """The two-tower that step 1 registered, its configuration and how many epochs it took.

        Raises:
            TowerlineError: there is none, or it was trained on other data: its item codes would mean other items.
        """
        model, card = load_challenger(self.settings.tracking_uri, self.dataset.name)
        version = self.dataset.manifest.data_version
        if card.data_version != version:
            raise TowerlineError(
                f"the challenger of data set {self.dataset.name!r} was trained on data version "
                f"{card.data_version[:12]}, which is now {version[:12]}; train it again with "
                f"`python -m jobs.train_retrieval --dataset {self.dataset.name}`"
            )
        return model, RetrievalConfig.model_validate(card.config), card.best_epoch + 1

    def _fit_retrieval(
        self, step: str, config: RetrievalConfig, rows: TrainingRows, teacher: RetrievalModel | None = None
    ) -> TrainedRetrieval:
        decisive: dict[str, Any] = {"config": config.model_dump(mode="json"), "rows": str(rows)}
        if self.origin:
            decisive["origin"] = digest_of(self.origin.model)
        fit: Callable[..., TrainedRetrieval] = train_retrieval
        if config.distillation is not None:
            teacher = teacher or self._fit_retrieval(f"{step}-teacher", config.of_teacher, rows).model
            decisive["teacher"] = digest_of(teacher)
            fit = partial(distil_retrieval, teacher=teacher)
        name = self.name_of(step, decisive)
        start = None
        if self.origin and rows.learnt:
            start = self.storage / name / "origin"
            start.mkdir(parents=True, exist_ok=True)
            self.origin.model.save(start)
        return fit(
            self.retrieval_task(config, rows, start),
            scaling=self.scaling,
            name=name,
            storage=self.storage,
            tracking=self.tracking(step),
            progress=self.progress,
        )

    def _card(
        self,
        variant: str,
        trained: TrainedRetrieval | TrainedRanking,
        config: RetrievalConfig | RankingConfig,
        trained_on: TrainingRows,
        measured: Measurements,
        *,
        sources: tuple[str, ...] = (),
    ) -> ModelCard:
        features = read_feature_manifest(self.examples_folder)
        return ModelCard(
            kind="two-tower" if isinstance(trained, TrainedRetrieval) else "ranker",
            variant=variant,
            dataset=self.dataset.name,
            data_version=self.dataset.manifest.data_version,
            trained_on=trained_on,
            events=KnownEvents.of(self.dataset.manifest.data_version, self.dataset.events()),
            parent=self.origin.parent if self.origin and trained_on.learnt else None,
            config=config.model_dump(mode="json"),
            scaling=self.scaling.model_dump(mode="json"),
            history_length=features.history_length,
            feature_fingerprints=features.fingerprints | ranker_fingerprints(sources),
            evaluation=measured.evaluation,
            curve=curve_of(trained.history),
            best_epoch=trained.best_epoch,
            git_commit=git_commit(),
            versions=versions(),
        )


def _fixed(config: RetrievalConfig, epochs: int) -> RetrievalConfig:
    """The same training for a fixed number of epochs: there is nothing held out to choose by."""
    return config.model_copy(update={"fit": FitConfig(epochs=epochs, metric=None, seed=config.fit.seed)})


def digest_of(model: RetrievalModel) -> str:
    """What tells a two-tower from any other: its items' vectors."""
    return hashlib.sha256(model.item_vectors_ID.tobytes()).hexdigest()[:10]
