"""A data set that grows: what is learnt from the new part alone, and what the gate then compares."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset, write_dataset
from data.events import ROWS_PER_FILE
from data.quality.validation import polars_schema
from data.schema import QUARANTINE, SPLIT
from data.splits import TEST
from tests.train.conftest import RANKING, RETRIEVAL
from tests.train.planted import GROUP_SIZE, GROUPS, build_here, item_id, planted_events, planted_items, planted_users
from train.gate import GateConfig
from train.incremental import IncrementalConfig, Origin
from train.loop import FitConfig
from train.models.ensemble import Ensemble, EnsembleConfig
from train.models.two_tower import TwoTowerConfig
from train.pair import Recoded, TwoTowerRecommender
from train.registry import RegisteredPair
from train.retrieval import RetrievalConfig, TrainedRetrieval
from train.scaling import Scaling
from train.vocabulary import Vocabulary
from train.workflow import Workflow

NEW_ITEMS = [item_id(group, GROUP_SIZE - 1) for group in range(GROUPS)]
INCREMENTAL = IncrementalConfig(fit=FitConfig(epochs=6, patience=2), learning_rate=5e-3, replay=0.5)
LENIENT = GateConfig(max_calibration_error=1, max_latency_ms=60_000, min_new_users=20)
"""Three epochs do not calibrate a ranker, and the machine may be busy."""


@dataclass(frozen=True)
class Grown:
    """A champion of nine tenths of the events, and what went on from it when the last tenth had come."""

    settings: Settings
    dataset: Dataset
    champion: RegisteredPair
    origin: Origin
    workflow: Workflow
    trained: TrainedRetrieval
    pair: RegisteredPair


def written(home: Path, events: pl.DataFrame, items: pl.DataFrame) -> Dataset:
    quarantine = pl.DataFrame(schema=polars_schema(QUARANTINE))
    users = planted_users()
    return write_dataset(
        home, "grown", events=events, items=items, users=users, quarantine=quarantine, source="made up"
    )


def workflow_on(settings: Settings, dataset: Dataset, origin: Origin | None = None) -> Workflow:
    folder, alone = build_here(settings.home, dataset), Scaling(backend="none")
    workflow = Workflow(settings, dataset, folder, alone, origin=origin)
    return workflow if origin is None else replace(workflow, protocol=origin.protocol)


def registered(workflow: Workflow, config: RetrievalConfig) -> tuple[TrainedRetrieval, RegisteredPair]:
    """What `train_retrieval` and `train_ranking` do."""
    trained = workflow.train_retrieval(config)
    workflow.register_challenger(trained, config, workflow.compare(trained.model))
    retrieval, config, epochs = workflow.load_challenger()
    past = workflow.train_past_retrieval(config, epochs, RANKING.past_share)
    ranking = workflow.train_ranking(RANKING, past.model, retrieval)
    measured = workflow.compare(retrieval, ranking, RANKING.num_candidates)
    refitted = workflow.refit_retrieval(config, epochs)
    return trained, workflow.register_pair(refitted, config, ranking, RANKING, measured)


def events_in_two_parts() -> tuple[pl.DataFrame, pl.DataFrame]:
    """As a file and one added to it; nobody met the new items in the first."""
    events = planted_events(0).sort("event_time", "source_row")
    cut = events.height * 9 // 10
    return (
        events[:cut].filter(~pl.col("item_id").is_in(NEW_ITEMS)),
        events[cut:].with_columns(pl.col("source_row") + ROWS_PER_FILE),
    )


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    settings = Settings(home=tmp_path_factory.mktemp("grown"))
    old, new = events_in_two_parts()
    first = workflow_on(
        settings, written(settings.home, old, planted_items().filter(~pl.col("item_id").is_in(NEW_ITEMS)))
    )
    _, champion = registered(first, RETRIEVAL)
    assert first.promote(champion).entry is not None
    dataset = written(settings.home, pl.concat([old, new]), planted_items())
    origin = Origin.load(settings.tracking_uri, dataset, "champion", INCREMENTAL.replay)
    workflow = workflow_on(settings, dataset, origin)
    trained, pair = registered(workflow, INCREMENTAL.over(origin.config))
    return Grown(settings, dataset, champion, origin, workflow, trained, pair)


def test_only_what_is_new_is_learnt_and_only_what_is_new_is_asked(grown: Grown) -> None:
    rows, examples = grown.workflow.train_split, grown.workflow.examples
    learnt = rows.select(examples)
    assert learnt["source_row"].min() >= ROWS_PER_FILE
    assert examples.filter(pl.col(SPLIT) == TEST)["source_row"].min() >= ROWS_PER_FILE
    assert learnt.height + rows.rehearsed(examples).height < examples.height / 6
    assert rows.seen(examples).height == learnt.height + grown.origin.card.seen_events.events
    everything = grown.workflow.all_events
    assert everything.seen(examples).height == examples.height
    assert everything.select(examples).height == grown.origin.new_events
    assert grown.origin.plan(examples).startswith(f"from version {grown.origin.version} of model 'grown-two-tower' on")


def test_sources_learn_anew_all_that_their_two_tower_has_seen(grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[pl.DataFrame] = []

    def told(_: EnsembleConfig, events: pl.DataFrame, __: Vocabulary) -> Ensemble:
        fitted.append(events)
        return Ensemble()

    monkeypatch.setattr(Ensemble, "fit", told)
    workflow, examples = grown.workflow, grown.workflow.examples
    for rows in (workflow.train_split, workflow.all_events):
        workflow.with_sources(grown.trained.model, RANKING, rows)
    of_train, of_all = (events["source_row"] for events in fitted)
    test = examples.filter(pl.col(SPLIT) == TEST)["source_row"]
    assert (of_train < ROWS_PER_FILE).sum() == grown.origin.card.seen_events.events
    assert (of_train >= ROWS_PER_FILE).any()
    assert not set(of_train) & set(test)
    assert set(of_all) == set(examples["source_row"])


def test_the_vocabulary_grows_and_new_items_are_recommended(grown: Grown) -> None:
    known, now = grown.origin.model.vocabulary, grown.trained.model.vocabulary
    assert now.items[: known.num_items] == known.items
    assert set(NEW_ITEMS) <= set(now.items[known.num_items :])
    cases = grown.workflow.cases(now)
    lists = TwoTowerRecommender(grown.trained.model).recommend(cases.rows, cases.exclude, 10)
    assert np.isin(lists, now.encode_items(pl.Series(NEW_ITEMS))).any()


def test_it_is_as_good_as_a_training_from_scratch(grown: Grown) -> None:
    scratch = replace(grown.workflow, origin=None, _names=set())
    model, vocabulary = scratch.train_retrieval(RETRIEVAL).model, grown.trained.model.vocabulary
    asked = {
        "scratch": Recoded(TwoTowerRecommender(model), model.vocabulary, vocabulary),
        "incremental": TwoTowerRecommender(grown.trained.model),
        "popularity": grown.workflow.baselines(vocabulary)["popularity"],
    }
    figures = grown.workflow.measure(asked, vocabulary).evaluation.figures
    assert figures["ndcg@10/incremental"] > 0.8 * figures["ndcg@10/scratch"]
    assert figures["ndcg@10/incremental"] > 1.5 * figures["ndcg@10/popularity"]


def test_the_card_names_the_parent_and_all_that_was_seen(grown: Grown) -> None:
    card = grown.origin.card
    again = Origin.load(grown.settings.tracking_uri, grown.dataset, "challenger", 0.0)
    assert again.card.parent is not None
    assert again.card.parent.version == grown.origin.version
    assert again.card.from_scratch == card.from_scratch
    assert again.card.trained_on.learnt == card.learnt
    assert again.new_events == 0


def test_the_gate_asks_the_champion_for_what_it_has_not_seen(grown: Grown) -> None:
    decision = grown.workflow.promote(grown.pair, LENIENT, force="test")
    report = decision.report
    assert report.comparable, report.lines()
    assert report.against == grown.champion.variant
    assert report.protocol_hash == grown.origin.protocol.hash
    assert report.protocol == grown.origin.protocol.words
    assert report.data_version == grown.dataset.manifest.data_version
    assert any(check.words.startswith("ndcg@10 is ") for check in report.checks)
    assert decision.entry is not None
    assert decision.entry.gate == report
    grown.workflow.promote(grown.champion, LENIENT, force="back")


def test_too_few_new_events_are_said(grown: Grown) -> None:
    decision = grown.workflow.promote(grown.pair, LENIENT.model_copy(update={"min_new_users": 100_000}))
    assert not decision.report.comparable
    (words,) = [words for words in decision.report.failed if "not comparable" in words]
    assert "users have a last event that came after" in words
    assert "at least 100000 are needed to compare by" in words


def test_a_data_set_that_was_replaced_is_refused(grown: Grown, tmp_path: Path) -> None:
    other = written(tmp_path, planted_events(1), planted_items())
    message = r"version \d+ of model 'grown-two-tower' has seen the [\d,]+ events of data version .* but replaced"
    with pytest.raises(TowerlineError, match=message):
        Origin.load(grown.settings.tracking_uri, other, "champion", 0.0)


def test_a_version_that_is_not_there_is_named_with_those_that_are(grown: Grown) -> None:
    with pytest.raises(
        TowerlineError, match=r"'grown-two-tower' .* has no version '99' \(there are: 1, 2, 3, 4; champion"
    ):
        Origin.load(grown.settings.tracking_uri, grown.dataset, "99", 0.0)


def test_another_shape_is_refused_with_both_values(grown: Grown) -> None:
    wider = RETRIEVAL.model_copy(update={"two_tower": TwoTowerConfig(embedding_dim=32, history_length=8)})
    with pytest.raises(TowerlineError, match=r"embedding_dim is 32 in the configuration, and version .* with 16"):
        grown.origin.require_same_shape(wider)


def test_too_little_to_learn_is_refused_with_the_numbers(grown: Grown) -> None:
    none = grown.workflow.examples.clear()
    with pytest.raises(TowerlineError, match=r"too few: 0 to learn from, 0 users to validate"):
        grown.origin.plan(none)
