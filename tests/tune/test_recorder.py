"""The recorder, called as Tune calls it."""

import math
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import ray.tune
from ray.tune.experiment import Trial

from cluster.errors import TowerlineError
from tune.algorithms import BEST, FAILED, Halving
from tune.outcome import TrialOutcome
from tune.recorder import Budget, Recorder
from tune.snapshot import Snapshots
from tune.trial import RUNNING_SUFFIX


def recorder_of(folder: Path, told: list[TrialOutcome], **changes: Any) -> Recorder:
    options = {"snapshots": Snapshots(folder), "trainings": None, "resumed": False, "runs": None} | changes
    return Recorder(Halving(max_epochs=2), 2, progress=told.append, **options)


def trial_of(number: int) -> Trial:
    return Trial("none", config={"learning_rate": number / 10}, experiment_tag=f"{number}_learning_rate=0", stub=True)


def epoch(number: int, value: float) -> dict[str, Any]:
    return {BEST: value, FAILED: "", "value": value, "loss": 1.0, "epoch": number}


def one_of_each(recorder: Recorder) -> None:
    """Trials 1 to 4: finished, stopped after an epoch, failed after an epoch, still running."""
    for number in (1, 2, 3, 4):
        trial = trial_of(number)
        recorder.on_trial_start(0, [], trial)
        recorder.on_trial_result(0, [], trial, epoch(0, number / 10))
        if number == 1:
            recorder.on_trial_result(0, [], trial, epoch(1, 0.5))
        if number == 3:
            recorder.on_trial_result(0, [], trial, {BEST: math.nan, FAILED: "the loss is nan"})
        if number < 4:
            recorder.on_trial_complete(0, [], trial)


def test_trials_are_remembered_by_number_and_how_they_ended(tmp_path: Path) -> None:
    told: list[TrialOutcome] = []
    recorder = recorder_of(tmp_path, told)
    one_of_each(recorder)
    assert [(each.number, each.state) for each in told if each.state != "running"] == [
        (1, "finished"),
        (2, "stopped"),
        (3, "failed"),
    ]
    ended = recorder.end()
    assert [trial.state for trial in ended] == ["finished", "stopped", "failed", "stopped"]
    assert [trial.curve for trial in ended] == [[0.1, 0.5], [0.2], [], [0.4]]
    assert [trial.sample["learning_rate"] for trial in ended] == [0.1, 0.2, 0.3, 0.4]
    assert ended[2].error == "the loss is nan"


def test_a_search_that_goes_on_knows_its_trials_asha_and_the_time_it_took(tmp_path: Path) -> None:
    before = recorder_of(tmp_path, [])
    one_of_each(before)
    state = pickle.loads(pickle.dumps(before.get_state()))
    state["seconds"] += 1000
    state["scheduler"]["_num_stopped"] = 77
    told: list[TrialOutcome] = []
    after = recorder_of(tmp_path, told, resumed=True)
    after.set_state(state)
    assert after.outcomes == before.outcomes
    assert 1000 < after.seconds < 2000
    assert after._scheduler._num_stopped == 77
    after.on_step_begin(0, [])
    after.on_trial_start(0, [], trial_of(4))
    assert after.outcomes[4].curve == [], "it begins anew"
    assert told == []


def test_a_state_that_tune_could_not_read_is_not_passed_over(tmp_path: Path) -> None:
    recorder_of(tmp_path, []).on_step_begin(0, [])
    with pytest.raises(TowerlineError, match=f"delete {tmp_path} to begin anew"):
        recorder_of(tmp_path, [], resumed=True).on_step_begin(0, [])


def test_the_budget_is_of_the_search_not_of_its_last_part(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, [])
    assert not Budget(recorder, 900).stop_all()
    recorder.set_state({"outcomes": {}, "seconds": 1000.0, "scheduler": {}})
    assert Budget(recorder, 900).stop_all()
    assert not Budget(recorder, None).stop_all()
    assert not Budget(recorder, 900)("trial", {})


def test_tune_can_pickle_them_and_what_comes_back_does_nothing(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, [])
    recorder.on_trial_start(0, [], trial_of(1))
    assert type(pickle.loads(pickle.dumps(recorder))) is ray.tune.Callback
    assert not pickle.loads(pickle.dumps(Budget(recorder, 0.0))).stop_all()


def test_the_workers_of_ended_trials_are_waited_for(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path, [], trainings=tmp_path)
    running = tmp_path / f"trial{RUNNING_SUFFIX}"
    running.touch()
    live = trial_of(1)
    live.set_status(Trial.RUNNING)
    recorder.on_step_end(0, [live])
    assert running.exists(), "not while another one runs"
    gone = threading.Timer(0.5, running.unlink)
    gone.start()
    live.set_status(Trial.TERMINATED)
    recorder.on_step_end(0, [live])
    assert not running.exists()
    gone.join()
