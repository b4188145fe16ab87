"""The runs of a search, in a real MLflow on SQLite."""

from typing import Any

import pytest

from train.tracking import TrackingTarget, connect
from tune.runs import Runs

SAMPLE = {"learning_rate": 0.1, "two_tower.dropout": 0.2}


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def target(tracking_uri: str, request: pytest.FixtureRequest) -> TrackingTarget:
    """An experiment for each test."""
    name = request.node.name
    return TrackingTarget(tracking_uri=tracking_uri, experiment=name, run_name="search", tags={"data_version": "v"})


def runs_of(target: TrackingTarget, name: str = "s") -> Runs:
    return Runs(target, {"num_trials": 3}, metric="ndcg@10", name=name)


def in_mlflow(target: TrackingTarget) -> dict[str, Any]:
    client = connect(target.tracking_uri)
    experiment = client.get_experiment_by_name(target.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run twice"
    return {run.info.run_name: run for run in found}


def test_trials_are_runs_under_that_of_the_search(target: TrackingTarget) -> None:
    with runs_of(target) as runs:
        runs.open(1, SAMPLE)
        runs.log(1, 0.5, 3.25, epoch=0)
        runs.close(1)
        runs.open(2, SAMPLE)
        runs.close(2, failed=True)
    found = in_mlflow(target)
    assert {name: run.info.status for name, run in found.items()} == {
        "search": "FINISHED",
        "trial 1": "FINISHED",
        "trial 2": "FAILED",
    }
    parent = found["search"].info.run_id
    assert {found[name].data.tags["mlflow.parentRunId"] for name in ("trial 1", "trial 2")} == {parent}
    assert found["search"].data.params == {"num_trials": "3"}
    assert found["trial 1"].data.params == {name: str(value) for name, value in SAMPLE.items()}
    assert found["trial 1"].data.metrics == {"ndcg_at_10": 0.5, "loss": 3.25}
    assert found["trial 1"].data.tags["data_version"] == "v"


def test_a_killed_search_goes_on_in_the_same_runs_and_logs_no_epoch_twice(target: TrackingTarget) -> None:
    def killed() -> None:
        with runs_of(target) as runs:
            for number in (1, 2, 3):
                runs.open(number, SAMPLE)
                runs.log(number, 0.5, 3.0, epoch=0)
            runs.close(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    before = in_mlflow(target)
    for name in ("search", "trial 2", "trial 3"):
        connect(target.tracking_uri).update_run(before[name].info.run_id, status="RUNNING")
    with runs_of(target) as runs:
        runs.keep_only([1, 2])
        runs.open(2, SAMPLE)
        for epoch in (0, 1):
            runs.log(2, 0.5 + epoch, 3.0, epoch=epoch)
        runs.close(2)
        runs.open(3, {"learning_rate": 0.9})
        runs.close(3)
    after = in_mlflow(target)
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    for name in ("search", "trial 1", "trial 2"):
        assert after[name].info.run_id == before[name].info.run_id
    assert after["trial 3"].info.run_id != before["trial 3"].info.run_id, "it tried something else"
    assert after["trial 3"].data.params == {"learning_rate": "0.9"}
    points = connect(target.tracking_uri).get_metric_history(after["trial 2"].info.run_id, "ndcg_at_10")
    assert [(point.step, point.value) for point in points] == [(0, 0.5), (1, 1.5)]


def test_a_trial_that_begins_anew_while_it_is_open_has_one_run(target: TrackingTarget) -> None:
    with runs_of(target) as runs:
        for _ in range(2):
            runs.open(1, SAMPLE)
            runs.log(1, 0.5, 3.0, epoch=0)
        runs.close(1)
        runs.close(1)
    run = in_mlflow(target)["trial 1"]
    assert len(connect(target.tracking_uri).get_metric_history(run.info.run_id, "ndcg_at_10")) == 1


def test_another_search_and_one_that_is_done_have_runs_of_their_own(target: TrackingTarget) -> None:
    ids = []
    for name in ("a", "b", "b"):
        with runs_of(target, name) as runs:
            ids.append(runs._search_id)
    assert len(set(ids)) == 3


def test_what_is_cut_off_is_closed_as_killed_and_gone_on_with(target: TrackingTarget) -> None:
    def interrupted() -> None:
        with runs_of(target) as runs:
            runs.open(1, SAMPLE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    before = in_mlflow(target)
    assert {run.info.status for run in before.values()} == {"KILLED"}
    with runs_of(target) as runs:
        runs.open(1, SAMPLE)
        runs.close(1)
    after = in_mlflow(target)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert {run.info.status for run in after.values()} == {"FINISHED"}
