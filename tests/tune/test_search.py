"""One small search, and searches whose trials fail, on a real Ray."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray.tune.experiment import Trial

from cluster.errors import TowerlineError
from tests.train.planted import Planted, plant
from train.loop import FitConfig
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, RetrievalTaskConfig, retrieval_task
from train.tracking import TrackingTarget, connect
from tune.search import SearchConfig, SearchOutcome, TrialOutcome, _Recorder, search_retrieval
from tune.space import RetrievalSpace, sample_of

if TYPE_CHECKING:
    from cluster.session import RaySession

CONFIG = RetrievalConfig(
    two_tower=TwoTowerConfig(embedding_dim=16, history_length=8),
    batch_size=256,
    learning_rate=8e-3,
    fit=FitConfig(epochs=9, patience=4),
)
SPACE = RetrievalSpace(learning_rate=(1e-3, 1e-2), embedding_dim=(8, 16))
ABSURD = (1e30, 1e35)
Told = list[tuple[int, TrialOutcome]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def task(planted: Planted) -> RetrievalTaskConfig:
    return retrieval_task(planted.dataset, planted.folder, CONFIG)


@pytest.fixture(scope="module")
def target(planted: Planted) -> TrackingTarget:
    uri = f"sqlite:///{planted.home}/mlflow.db"
    return TrackingTarget(tracking_uri=uri, experiment="planted", run_name="search", tags={"data_version": "v"})


@pytest.fixture(scope="module")
def searched(
    planted: Planted, task: RetrievalTaskConfig, target: TrackingTarget, ray_session: "RaySession"
) -> tuple[SearchOutcome, Told]:
    assert ray_session
    told: Told = []
    search = SearchConfig(num_trials=3, max_epochs=2, space=SPACE)
    outcome = search_retrieval(
        task,
        search,
        name="search",
        storage=planted.home / "runs",
        tracking=target,
        progress=lambda number, trial: told.append((number, trial)),
    )
    return outcome, told


def test_one_of_the_trials_is_the_configuration_as_it_is(searched: tuple[SearchOutcome, Told]) -> None:
    """The first one by plan; of two at a time either may start first."""
    samples = [trial.sample for trial in searched[0].trials]
    assert sample_of(CONFIG) in samples[:2]
    assert len({str(sample) for sample in samples}) == 3


def test_the_best_trial_is_what_is_found(searched: tuple[SearchOutcome, Told]) -> None:
    outcome, _ = searched
    reached = [max(trial.curve) for trial in outcome.trials]
    assert reached[outcome.best] == max(reached)
    assert sample_of(outcome.config) == outcome.trials[outcome.best].sample
    assert (outcome.config.fit, outcome.config.batch_size) == (CONFIG.fit, CONFIG.batch_size)
    assert RetrievalConfig.model_validate(outcome.config.model_dump()) == outcome.config
    for trial in outcome.trials:
        assert 1 <= len(trial.curve) <= 2
        assert all(0 < value < 1 for value in trial.curve)
        assert SPACE.learning_rate[0] <= trial.sample["learning_rate"] <= SPACE.learning_rate[1]


def test_every_trial_is_told_once_with_its_number(searched: tuple[SearchOutcome, Told]) -> None:
    outcome, told = searched
    assert sorted(number for number, _ in told) == [1, 2, 3]
    assert {number: trial.curve for number, trial in told} == {
        number: trial.curve for number, trial in enumerate(outcome.trials, start=1)
    }


def test_trials_are_runs_under_the_search_in_mlflow(
    searched: tuple[SearchOutcome, Told], target: TrackingTarget
) -> None:
    outcome, _ = searched
    client = connect(target.tracking_uri)
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["search", "trial 1", "trial 2", "trial 3"]
    for number, trial in enumerate(outcome.trials, start=1):
        run = runs[f"trial {number}"]
        assert run.data.tags["mlflow.parentRunId"] == runs["search"].info.run_id
        assert run.data.params["learning_rate"] == str(trial.sample["learning_rate"])
        points = client.get_metric_history(run.info.run_id, "ndcg_at_10")
        assert [(point.step, point.value) for point in points] == list(enumerate(trial.curve))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["search"].data.params["num_trials"] == "3"


def test_trials_that_fail_do_not_break_the_search(
    task: RetrievalTaskConfig, target: TrackingTarget, ray_session: "RaySession", tmp_path: Path
) -> None:
    """The first trial's rate is sane, the others' let the loss grow beyond all bounds."""
    assert ray_session
    told: Told = []
    outcome = search_retrieval(
        task,
        SearchConfig(num_trials=3, max_epochs=1, seed=1, space=RetrievalSpace(learning_rate=ABSURD)),
        name="absurd",
        storage=tmp_path,
        tracking=target.model_copy(update={"experiment": "absurd"}),
        progress=lambda number, trial: told.append((number, trial)),
    )
    failed = [trial for trial in outcome.trials if not trial.curve]
    assert failed, "a rate above 1e20 is likely enough to be drawn"
    assert all(trial.sample["learning_rate"] > 1 for trial in failed)
    assert outcome.trials[outcome.best].curve
    assert [number for number, trial in enumerate(outcome.trials, 1) if trial.curve] == sorted(n for n, _ in told)
    client = connect(target.tracking_uri)
    experiment = client.get_experiment_by_name("absurd")
    assert experiment is not None
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert statuses.count("FAILED") == len(failed)
    assert statuses.count("FINISHED") == 4 - len(failed)


def test_a_search_all_of_whose_trials_fail_says_so(
    planted: Planted, ray_session: "RaySession", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ray_session
    absurd = retrieval_task(
        planted.dataset, planted.folder, CONFIG.model_copy(update={"learning_rate": math.sqrt(1e65)})
    )
    search = SearchConfig(num_trials=2, max_epochs=1, space=RetrievalSpace(learning_rate=ABSURD))
    with pytest.raises(TowerlineError, match=f"all 2 trials of the search failed; see {tmp_path}/hopeless"):
        search_retrieval(absurd, search, name="hopeless", storage=tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "one line for each trial, and no traceback"
    for line in said:
        assert re.fullmatch(
            r"trial \{.*\} failed: .*the training loss of epoch 0 is nan; try a learning rate below .*", line
        )
    assert len(list(tmp_path.glob("hopeless/*/error.txt"))) == 2


def test_a_search_whose_space_does_not_fit_the_config_is_refused_before_any_trial(
    planted: Planted, tmp_path: Path
) -> None:
    two_tower = TwoTowerConfig(embedding_dim=15, attention_heads=5)
    task = retrieval_task(planted.dataset, planted.folder, CONFIG.model_copy(update={"two_tower": two_tower}))
    with pytest.raises(ValueError, match="embedding_dim is 48, expected a multiple of attention_heads, 5"):
        search_retrieval(task, SearchConfig(), name="refused", storage=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_cut_off_is_closed_as_killed(tmp_path: Path) -> None:
    tracking = TrackingTarget(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="cut", run_name="search")
    recorder = _Recorder(tracking, None)
    recorder.on_trial_start(0, [], Trial("none", config={"learning_rate": 0.1}, stub=True))
    with pytest.raises(KeyboardInterrupt), recorder:
        raise KeyboardInterrupt
    client = connect(tracking.tracking_uri)
    experiment = client.get_experiment_by_name("cut")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
