"""One small search with trials that fail, on a real Ray, and what is refused before any trial."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster.errors import TowerlineError
from tests.train.planted import Planted, plant
from train.loop import FitConfig
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, RetrievalTaskConfig, retrieval_task
from train.tracking import TrackingTarget, connect
from tune.config import SearchConfig
from tune.outcome import SearchOutcome, TrialOutcome
from tune.search import finished_search, search_model

if TYPE_CHECKING:
    from cluster.session import RaySession

CONFIG = RetrievalConfig(
    two_tower=TwoTowerConfig(embedding_dim=16, history_length=8),
    batch_size=256,
    learning_rate=8e-3,
    fit=FitConfig(epochs=9, patience=4),
)
ABSURD = 1e33
"""A learning rate that lets the loss grow beyond all bounds."""
SEARCH = SearchConfig(
    algorithm="grid",
    num_trials=4,
    max_epochs=2,
    space={"learning_rate": {"choices": [8e-3, ABSURD]}, "two_tower": {"embedding_dim": {"choices": [8, 16]}}},  # type: ignore[dict-item]
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def task(planted: Planted) -> RetrievalTaskConfig:
    return retrieval_task(planted.dataset, planted.folder, CONFIG)


@pytest.fixture(scope="module")
def target(planted: Planted) -> TrackingTarget:
    uri = f"sqlite:///{planted.home}/mlflow.db"
    return TrackingTarget(tracking_uri=uri, experiment="planted", run_name="search")


@pytest.fixture(scope="module")
def searched(
    planted: Planted, task: RetrievalTaskConfig, target: TrackingTarget, ray_session: "RaySession"
) -> tuple[SearchOutcome[Any], list[TrialOutcome]]:
    assert ray_session
    told: list[TrialOutcome] = []
    storage = planted.home / "runs"
    outcome = search_model(task, SEARCH, name="s", storage=storage, tracking=target, progress=told.append)
    return outcome, told


def test_every_point_of_the_grid_was_tried_and_the_best_is_found(
    searched: tuple[SearchOutcome[Any], list[TrialOutcome]],
) -> None:
    outcome, _ = searched
    assert [trial.sample for trial in outcome.trials] == [
        {"learning_rate": rate, "two_tower.embedding_dim": width} for rate in (8e-3, ABSURD) for width in (8, 16)
    ]
    assert [trial.number for trial in outcome.trials] == [1, 2, 3, 4]
    measured = [trial for trial in outcome.trials if trial.curve]
    assert outcome.best.best("max") == max(max(trial.curve) for trial in measured)
    width = outcome.best.sample["two_tower.embedding_dim"]
    two_tower = CONFIG.two_tower.model_copy(update={"embedding_dim": width})
    assert outcome.config == CONFIG.model_copy(update={"two_tower": two_tower})


def test_a_loss_that_is_no_number_ends_its_trial_and_no_other(
    searched: tuple[SearchOutcome[Any], list[TrialOutcome]],
) -> None:
    outcome, _ = searched
    assert [trial.state == "failed" for trial in outcome.trials] == [False, False, True, True]
    for trial in outcome.trials[2:]:
        assert trial.curve == []
        assert "the training loss of epoch 0 is" in trial.error
    for trial in outcome.trials[:2]:
        assert trial.state == ("finished" if len(trial.curve) == 2 else "stopped")
        assert all(0 < value < 1 for value in trial.curve)


def test_every_epoch_and_end_is_told(searched: tuple[SearchOutcome[Any], list[TrialOutcome]]) -> None:
    outcome, told = searched
    for trial in outcome.trials:
        heard = [each for each in told if each.number == trial.number]
        assert heard[-1] == trial
        assert [each.curve for each in heard[:-1]] == [trial.curve[: end + 1] for end in range(len(trial.curve))]


def test_trials_are_runs_under_the_search_in_mlflow(
    searched: tuple[SearchOutcome[Any], list[TrialOutcome]], target: TrackingTarget
) -> None:
    outcome, _ = searched
    client = connect(target.tracking_uri)
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["search", "trial 1", "trial 2", "trial 3", "trial 4"]
    for trial in outcome.trials:
        run = runs[f"trial {trial.number}"]
        assert run.info.status == ("FAILED" if trial.state == "failed" else "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == runs["search"].info.run_id
        assert run.data.params["learning_rate"] == str(trial.sample["learning_rate"])
        points = client.get_metric_history(run.info.run_id, "ndcg_at_10")
        assert [(point.step, point.value) for point in points] == list(enumerate(trial.curve))


def test_a_search_that_is_done_is_read_and_nothing_but_its_outcome_is_kept(
    searched: tuple[SearchOutcome[Any], list[TrialOutcome]],
    planted: Planted,
    task: RetrievalTaskConfig,
    target: TrackingTarget,
) -> None:
    folder = planted.home / "runs" / "s"
    before = (folder / "outcome.json").stat().st_mtime_ns
    told: list[TrialOutcome] = []
    again = search_model(task, SEARCH, name="s", storage=folder.parent, tracking=target, progress=told.append)
    assert again == searched[0] == finished_search(CONFIG, name="s", storage=folder.parent)
    assert told == []
    assert (folder / "outcome.json").stat().st_mtime_ns == before
    assert len(json.loads((folder / "outcome.json").read_text())["trials"]) == 4
    assert [path.name for path in folder.iterdir()] == ["outcome.json"]


def test_a_search_all_of_whose_trials_fail_says_why_and_can_be_begun_anew(
    task: RetrievalTaskConfig, ray_session: "RaySession", tmp_path: Path
) -> None:
    assert ray_session
    hopeless = SearchConfig(
        algorithm="grid",
        num_trials=1,
        space={"learning_rate": {"choices": [ABSURD]}},  # type: ignore[dict-item]
    )
    with pytest.raises(TowerlineError, match="all 1 trials of the search failed, the first: the training loss"):
        search_model(task, hopeless, name="hopeless", storage=tmp_path)
    assert finished_search(CONFIG, name="hopeless", storage=tmp_path) is None
    assert not (tmp_path / "hopeless" / "state").exists()


def test_a_search_whose_time_is_over_before_an_epoch_says_so(
    task: RetrievalTaskConfig, ray_session: "RaySession", tmp_path: Path
) -> None:
    assert ray_session
    search = SearchConfig(time_budget_s=1e-6)
    with pytest.raises(TowerlineError, match=r"search\.time_budget_s = 1e-06; raise it"):
        search_model(task, search, name="short", storage=tmp_path)


@contextmanager
def nothing_begun(folder: Path) -> Iterator[None]:
    yield
    assert list(folder.iterdir()) == []


def test_a_space_that_does_not_fit_the_config_is_refused_before_any_trial(planted: Planted, tmp_path: Path) -> None:
    two_tower = TwoTowerConfig(embedding_dim=15, attention_heads=5)
    task = retrieval_task(planted.dataset, planted.folder, CONFIG.model_copy(update={"two_tower": two_tower}))
    with nothing_begun(tmp_path), pytest.raises(TowerlineError, match=r"embedding_dim = 48.*attention_heads, 5"):
        search_model(task, SearchConfig(), name="refused", storage=tmp_path)


def test_without_a_metric_there_is_nothing_to_compare(planted: Planted, tmp_path: Path) -> None:
    fit = CONFIG.fit.model_copy(update={"metric": None})
    task = retrieval_task(planted.dataset, planted.folder, CONFIG.model_copy(update={"fit": fit}))
    with nothing_begun(tmp_path), pytest.raises(TowerlineError, match=r"fit\.metric is not set"):
        search_model(task, SearchConfig(), name="refused", storage=tmp_path)
