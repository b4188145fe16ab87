"""The steps in their order, without Ray: what is trained on what, what is read again, what is forgotten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import write_dataset
from tests.train.conftest import RANKING, RETRIEVAL, DonePath
from tests.train.planted import Planted, build_here, plant, planted_events, planted_items, planted_users
from train.loop import EpochResult, FitConfig
from train.scaling import Scaling
from train.tracking import connect
from train.workflow import Workflow

SHORT = RETRIEVAL.model_copy(update={"fit": FitConfig(epochs=3)})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A home of its own, for tests that leave something behind."""
    return plant(tmp_path_factory.mktemp("own"))


@pytest.fixture
def seen() -> list[EpochResult]:
    return []


@pytest.fixture
def workflow(own: Planted, seen: list[EpochResult], monkeypatch: pytest.MonkeyPatch) -> Workflow:
    """Its trainings bear the commit in their names, which may change while tests run on a tree that is worked on."""
    monkeypatch.setattr("train.workplace.git_commit", lambda: "a commit")
    return Workflow(Settings(home=own.home), own.dataset, own.folder, Scaling(backend="none"), progress=seen.append)


def test_every_epoch_of_every_training_is_told_once(path: DonePath) -> None:
    trainings = (path.retrieval, path.past, path.ranking, path.refitted)
    assert path.epochs == [epoch for trained in trainings for epoch in trained.history]


def test_trainings_and_their_curves_are_in_mlflow(path: DonePath) -> None:
    client = connect(path.workflow.settings.tracking_uri)
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    steps = ["retrieval", "retrieval-before-t1", "ranking", "retrieval-all", "register challenger", "register pair"]
    assert set(runs) == set(steps)
    points = client.get_metric_history(runs["retrieval"].info.run_id, "ndcg_at_10")
    assert [point.value for point in points] == [epoch.metrics["ndcg@10"] for epoch in path.retrieval.history]
    for run in runs.values():
        assert run.data.tags["data_version"] == path.workflow.dataset.manifest.data_version
        assert run.info.status == "FINISHED"


def test_without_a_ranker_only_the_others_are_compared(path: DonePath) -> None:
    evaluation = path.workflow.compare(path.retrieval.model).evaluation
    assert {name.partition("/")[2] for name in evaluation.figures} == {"popularity", "item_item", "two_tower"}
    for name, value in evaluation.figures.items():
        assert path.evaluation.figures[name] == value


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(workflow: Workflow, seen: list[EpochResult]) -> None:
    def interrupt(result: EpochResult) -> None:
        seen.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(workflow, progress=interrupt).train_retrieval(SHORT)
    assert [epoch.epoch for epoch in seen] == [0]
    resumed = workflow.train_retrieval(SHORT)
    assert [epoch.epoch for epoch in seen] == [0, 1, 2]
    workflow.forget()
    alone = workflow.train_retrieval(SHORT)
    assert [epoch.epoch for epoch in seen] == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(resumed.model.item_vectors_ID, alone.model.item_vectors_ID)
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in alone.history]
    workflow.forget()


def test_a_finished_training_is_read_until_it_is_forgotten(workflow: Workflow, seen: list[EpochResult]) -> None:
    first = workflow.train_retrieval(SHORT)
    again = workflow.train_retrieval(SHORT)
    assert len(seen) == 3
    np.testing.assert_array_equal(again.model.item_vectors_ID, first.model.item_vectors_ID)
    assert (again.history, again.best_epoch) == (first.history, first.best_epoch)
    folders = list(workflow.storage.iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["planted-retrieval"]
    workflow.forget()
    assert list(workflow.storage.iterdir()) == []


def test_another_configuration_is_another_training(workflow: Workflow, seen: list[EpochResult]) -> None:
    one = SHORT.model_copy(update={"fit": FitConfig(epochs=1)})
    workflow.train_retrieval(one)
    workflow.train_retrieval(one.model_copy(update={"learning_rate": 1e-3}))
    workflow.train_past_retrieval(one, 1, 0.8)
    workflow.train_past_retrieval(one, 1, 0.5)
    workflow.refit_retrieval(one, 1)
    assert len(seen) == 5
    assert len(list(workflow.storage.iterdir())) == 5
    workflow.forget()


def test_another_commit_is_another_training(
    workflow: Workflow, seen: list[EpochResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SHORT.model_copy(update={"fit": FitConfig(epochs=1)})
    workflow.train_retrieval(one)
    monkeypatch.setattr("train.workplace.git_commit", lambda: "another commit")
    workflow.train_retrieval(one)
    assert len(seen) == 2
    workflow.forget()
    assert list(workflow.storage.iterdir()) == []


def test_forgetting_leaves_the_runs_of_others(workflow: Workflow) -> None:
    other = replace(workflow, _names=set())
    one = SHORT.model_copy(update={"fit": FitConfig(epochs=1)})
    other.refit_retrieval(one, 1)
    workflow.train_retrieval(one)
    workflow.forget()
    assert len(list(workflow.storage.iterdir())) == 1
    other.forget()


def test_the_challenger_comes_back_with_its_configuration_and_epochs(path: DonePath) -> None:
    model, config, epochs = path.workflow.load_challenger()
    assert config == RETRIEVAL
    assert epochs == path.retrieval.best_epoch + 1
    np.testing.assert_array_equal(model.item_vectors_ID, path.retrieval.model.item_vectors_ID)


def test_a_challenger_of_other_data_is_refused(path: DonePath, tmp_path: Path) -> None:
    """Its codes would be other items."""
    changed = write_dataset(
        tmp_path,
        "planted",
        events=planted_events(seed=1),
        items=planted_items().reverse(),
        users=planted_users(),
        quarantine=path.workflow.dataset.quarantine(),
        source="made up, again",
    )
    workflow = replace(path.workflow, dataset=changed, examples_folder=build_here(tmp_path, changed))
    old, new = (each.manifest.data_version[:12] for each in (path.workflow.dataset, changed))
    message = (
        rf"'planted' was trained on data version {old}, which is now {new}; .*jobs.train_retrieval --dataset planted"
    )
    with pytest.raises(TowerlineError, match=message):
        workflow.load_challenger()


def test_what_was_planted_becomes_champion(path: DonePath) -> None:
    assert path.decision.report.passed
    assert len(path.decision.report.checks) == 2
    assert path.decision.entry is not None
    assert path.evaluation.figures["ndcg@10/two_tower_ranker"] > 0.6
    assert len(path.ranking.history) <= RANKING.fit.epochs
