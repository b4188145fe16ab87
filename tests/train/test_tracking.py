import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.errors import TowerlineError
from train.loop import EpochResult
from train.tracking import TrackingTarget, connect, start_run


@pytest.fixture
def target(tmp_path: Path) -> TrackingTarget:
    uri = f"sqlite:///{tmp_path}/new home/mlflow.db"
    return TrackingTarget(tracking_uri=uri, experiment="retrieval", run_name="first", tags={"dataset": "demo"})


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_run_keeps_parameters_curve_and_parent(target: TrackingTarget, tmp_path: Path) -> None:
    with start_run(target, {"fit.epochs": 2}) as parent:
        for epoch in range(2):
            parent.log_epoch(
                EpochResult(
                    epoch=epoch,
                    loss=1.0 - epoch,
                    seconds=2.0,
                    samples_per_s=50.0,
                    data_wait=0.25,
                    metrics={"ndcg@10": 0.1},
                )
            )
        child_target = target.model_copy(update={"run_name": "child", "parent_run_id": parent.run_id})
        with start_run(child_target) as child:
            child.log_metrics({"recall@10": 0.5})
    client = connect(target.tracking_uri)
    run = client.get_run(parent.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"fit.epochs": "2"}
    assert run.data.tags["dataset"] == "demo"
    assert [(point.step, point.value) for point in client.get_metric_history(parent.run_id, "loss")] == [(0, 1), (1, 0)]
    assert [point.step for point in client.get_metric_history(parent.run_id, "ndcg_at_10")] == [0, 1]
    speed = [client.get_metric_history(parent.run_id, name)[1].value for name in ("samples_per_s", "data_wait")]
    assert speed == [50.0, 0.25]
    assert run.info.artifact_uri.startswith(f"{(tmp_path / 'new home').as_uri()}/artifacts/retrieval/")
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_broke_off_says_so(target: TrackingTarget, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start_run(target) as run:
        raise error
    assert connect(target.tracking_uri).get_run(run.run_id).info.status == status


def test_two_first_runs_at_once_share_the_experiment(target: TrackingTarget) -> None:
    connect(target.tracking_uri).search_experiments()
    runs: list[str] = []

    def track() -> None:
        with start_run(target) as run:
            runs.append(run.run_id)

    threads = [threading.Thread(target=track) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client: MlflowClient = connect(target.tracking_uri)
    assert len({client.get_run(run_id).info.experiment_id for run_id in runs}) == 1
    assert len(runs) == 4


def test_a_server_that_is_not_there_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(TowerlineError, match=rf"{address} does not answer.*TOWERLINE_MLFLOW_TRACKING_URI"):
        connect(address)
    assert time.monotonic() - started < 60


def test_a_server_that_is_silent_is_named_soon(silent_server: int) -> None:
    started = time.monotonic()
    with pytest.raises(TowerlineError, match=rf"127.0.0.1:{silent_server} does not answer"):
        connect(f"http://127.0.0.1:{silent_server}")
    assert time.monotonic() - started < 60


def test_a_database_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TowerlineError, match=r"file/mlflow.db cannot be made.*TOWERLINE_HOME"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db")
