"""A search whose driver is killed outright goes on with all that it had; and one whose trials are distributed."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from cluster.provenance import ROOT
from data.dataset import open_dataset
from tests.train.planted import build_here, plant
from train.retrieval import RetrievalConfig, retrieval_task
from train.scaling import Scaling
from train.tracking import connect
from tune.config import SearchConfig
from tune.search import search_model

if TYPE_CHECKING:
    from cluster.session import RaySession

pytestmark = pytest.mark.cluster

TRIALS = 10
CONFIG = f"""
[retrieval]
batch_size = 16
[retrieval.two_tower]
embedding_dim = 16
history_length = 8
[search.retrieval]
num_trials = {TRIALS}
max_epochs = 2
[search.retrieval.space]
learning_rate = {{low = 0.001, high = 0.01, log = true}}
two_tower.embedding_dim = {{choices = [8, 16]}}
"""
ENDED = re.compile(r"trial (\d+) (?:finished|stopped): (.*)")


def ended(output: str) -> dict[str, str]:
    return dict(ENDED.findall(output))


def kept_by_tune(home: Path) -> int:
    """Trials that have ended, in the last state that can be gone on with."""
    for path in home.glob("runs/*/state/experiment_state-*.json"):
        with suppress(FileNotFoundError):  # It is being replaced.
            trials = [json.loads(trial) for trial, _ in json.loads(path.read_text())["trial_data"]]
            return sum(trial["status"] == "TERMINATED" for trial in trials)
    return 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    plant(tmp_path / "home")
    (tmp_path / "search.toml").write_text(CONFIG)
    return tmp_path / "home"


def job(home: Path) -> subprocess.Popen[str]:
    """With a git that knows nothing: of the same commit, whatever is committed while the test runs."""
    git = home.parent / "bin" / "git"
    git.parent.mkdir(exist_ok=True)
    git.write_text("#!/bin/sh\nexit 1\n")
    git.chmod(0o755)
    path = os.pathsep.join([str(git.parent), os.environ["PATH"]])
    changes = {"TOWERLINE_HOME": str(home), "TOWERLINE_GIT_COMMIT": "tested", "PATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.tune_retrieval", "--dataset", "planted", "--config", home.parent / "search.toml"],
        env={**os.environ, **changes, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def killed_in_the_middle(home: Path) -> tuple[str, int]:
    """What it printed, and how many ended trials could be gone on with then."""
    process = job(home)
    try:
        deadline = time.monotonic() + 3000
        while kept_by_tune(home) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kept = kept_by_tune(home)
    finally:
        process.kill()
        printed = process.communicate()[0]
    return printed, kept


def test_a_search_whose_driver_is_killed_goes_on_where_it_was(home: Path) -> None:
    printed, kept = killed_in_the_middle(home)
    before = ended(printed)
    killed_ms = time.time_ns() // 1_000_000
    assert kept <= len(before) < TRIALS
    process = job(home)
    again = process.communicate(timeout=900)[0]
    assert process.returncode == 0, again
    after = ended(again)
    assert len(set(before) & set(after)) <= len(before) - kept, "what ended is not done again"
    assert len(set(before) | set(after)) == TRIALS
    assert {number: before[number] for number in set(before) & set(after)} == {
        number: after[number] for number in set(before) & set(after)
    }
    (outcome,) = home.glob("runs/*/outcome.json")
    trials = json.loads(outcome.read_text())["trials"]
    assert [trial["number"] for trial in trials] == list(range(1, TRIALS + 1))
    curves = {str(trial["number"]): " ".join(f"{value:.4f}" for value in trial["curve"]) for trial in trials}
    for number, line in (before | after).items():
        assert line.endswith(f": {curves[number]}")
    assert_runs_once(home, [number for number in before if number not in after], killed_ms)


def assert_runs_once(home: Path, kept: list[str], killed_ms: int) -> None:
    """Every trial has one run in MLflow, and those that had ended are of the time before."""
    client = connect(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(["retrieval search", *(f"trial {number}" for number in range(1, TRIALS + 1))])
    assert {run.info.status for run in runs} == {"FINISHED"}
    ended_ms = {run.info.run_name: run.info.end_time for run in runs}
    assert all(ended_ms[f"trial {number}"] < killed_ms for number in kept)


def test_trials_that_are_distributed_trainings_give_their_workers_cpus_back(
    home: Path, ray_session: "RaySession"
) -> None:
    """Room for one trial at a time; the second, which learns next to nothing, is stopped by ASHA."""
    assert ray_session
    planted = open_dataset(home, "planted")
    task = retrieval_task(planted, build_here(home, planted), RetrievalConfig(batch_size=64, learning_rate=5e-3))
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    search = SearchConfig(
        algorithm="grid",
        num_trials=2,
        max_epochs=4,
        space={"learning_rate": {"choices": [5e-3, 1e-7]}},  # type: ignore[dict-item]
        scaling=Scaling(backend="torch", cpus_per_worker=cpus / 2, start_timeout_s=300),
    )
    outcome = search_model(task, search, name="distributed", storage=home / "runs")
    assert [trial.state for trial in outcome.trials] == ["finished", "stopped"]
    assert [len(trial.curve) for trial in outcome.trials] == [4, 1]
    deadline = time.monotonic() + 300
    while ray.available_resources().get("CPU", 0) < cpus:  # type: ignore[no-untyped-call]
        assert time.monotonic() < deadline, "a training holds CPUs after its trial"
        time.sleep(0.2)
