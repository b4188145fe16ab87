"""A trial in this process, driven as Tune drives it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import TowerlineError
from tests.train.planted import Planted, plant
from train.loop import FitConfig
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, retrieval_task
from train.scaling import Scaling
from tune.algorithms import BEST, FAILED
from tune.trial import StoppableConfig, Trial, Trials, build_stoppable, trial_task

CONFIG = RetrievalConfig(
    two_tower=TwoTowerConfig(embedding_dim=16, history_length=8),
    batch_size=256,
    learning_rate=8e-3,
    fit=FitConfig(epochs=9, patience=1, seed=5),
)
SAMPLE = {"learning_rate": 4e-3, "two_tower.embedding_dim": 8}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def trials(planted: Planted, tmp_path: Path) -> Trials:
    task = retrieval_task(planted.dataset, planted.folder, CONFIG)
    return Trials(task, "ndcg@10", "max", 3, Scaling(backend="none"), tmp_path / "trainings")


@contextmanager
def begun(trials: Trials, sample: dict[str, Any] = SAMPLE) -> Iterator[Trial]:
    trial = object.__new__(Trial)
    trial._trial_info = None
    trial.setup(sample, trials)
    try:
        yield trial
    finally:
        trial.cleanup()


def test_a_trial_trains_what_the_sample_says_for_as_long_as_it_may(trials: Trials) -> None:
    config = trial_task(trials, SAMPLE).config
    assert isinstance(config, RetrievalConfig)
    assert (config.learning_rate, config.two_tower.embedding_dim) == (4e-3, 8)
    assert config.fit == FitConfig(epochs=3, patience=None, seed=5)
    assert config.batch_size == CONFIG.batch_size


def test_steps_are_epochs_and_the_best_so_far_is_kept(trials: Trials) -> None:
    with begun(trials) as trial:
        results = [trial.step() for _ in range(3)]
    values = [result["value"] for result in results]
    assert [result["epoch"] for result in results] == [0, 1, 2]
    assert [result[BEST] for result in results] == [max(values[: end + 1]) for end in range(3)]
    assert {result[FAILED] for result in results} == {""}


def test_a_trial_waits_after_an_epoch_and_can_be_stopped_there(trials: Trials) -> None:
    with begun(trials) as trial:
        trial.step()
    written = list(trials.storage.glob("*/progress.jsonl"))
    assert len(written) == 1
    assert len(written[0].read_text().split()) == 1, "one epoch, and no second"


def test_a_trial_that_was_cut_off_goes_on_and_tells_all_of_it(trials: Trials) -> None:
    with begun(trials) as trial:
        whole = [trial.step()["value"] for _ in range(3)]
    other = Trials(**{**vars(trials), "storage": trials.storage / "other"})
    with begun(other) as trial:
        first = trial.step()["value"]
    assert first == whole[0]
    for _ in range(2):
        with begun(other) as trial:
            assert [trial.step()["value"] for _ in range(3)] == whole


def test_the_same_process_can_take_another_trial(trials: Trials) -> None:
    with begun(trials) as trial:
        first = trial.step()
        trial._trial_info = None
        trial._trials = Trials(**{**vars(trials), "storage": trials.storage / "another"})
        assert trial.reset_config(SAMPLE)
        assert trial.step()["value"] == first["value"]
        assert trial.step()["epoch"] == 1


def test_a_process_that_is_set_up_and_not_used_trains_nothing(trials: Trials) -> None:
    with begun(trials):
        pass
    assert not trials.storage.exists()


def test_a_loss_that_is_no_number_is_the_last_result(trials: Trials) -> None:
    with begun(trials, {"learning_rate": 1e33}) as trial:
        result = trial.step()
    assert result["done"]
    assert result[BEST] != result[BEST]
    assert "the training loss of epoch 0 is nan; try a learning rate below" in result[FAILED]


def test_a_defect_is_raised(trials: Trials) -> None:
    broken = Trials(**{**vars(trials), "metric": "no such metric"})
    with begun(broken) as trial, pytest.raises(KeyError, match="no such metric"):
        trial.step()


def test_workers_end_their_training_when_the_file_appears(trials: Trials, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    task = build_stoppable(StoppableConfig(trials.task, stop))
    share = next(iter(task.order.shares(0, 0, 1)))
    assert task.batch(share) is not None
    assert 0 <= task.validate()["ndcg@10"] <= 1
    stop.touch()
    with pytest.raises(TowerlineError, match="the search has ended this trial"):
        task.batch(share)
