import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cluster.errors import TowerlineError
from tests.train.toy_task import ToyConfig, begun, build_toy, lineage, undisturbed
from tests.waiting import wait_until
from train.checkpoint import Checkpoints
from train.crew import same_workers
from train.loop import EpochResult, FitConfig
from train.scaling import Scaling
from train.tracking import TrackingTarget, connect
from train.trainer import TrainedModel, train_distributed

if TYPE_CHECKING:
    from cluster.session import RaySession

FIT = FitConfig(epochs=4, metric="error", mode="min")
ALONE = Scaling(backend="none")


class Run:
    """A training with its folder, and the notes that its workers left."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.storage = folder / "runs"
        self.seen: list[EpochResult] = []

    def train(
        self,
        scaling: Scaling,
        config: ToyConfig | None = None,
        fit: FitConfig = FIT,
        uri: str | None = None,
        name: str = "toy",
    ) -> TrainedModel:
        target = TrackingTarget(tracking_uri=uri, experiment="toy", run_name="toy") if uri else None
        config = config or ToyConfig(notes=self.notes)
        return train_distributed(
            build_toy,
            config,
            fit,
            scaling,
            name=name,
            storage=self.storage,
            tracking=target,
            progress=self.seen.append,
        )

    def noted(self, what: str) -> set[str]:
        return {re.search(rf"{what}=([^,]+)", path.name)[1] for path in self.notes.glob("rank=*")}  # type: ignore[index]


INTERRUPTED = """
import sys
from pathlib import Path

from cluster.session import connect
from cluster.settings import Settings
from tests.train.toy_task import ToyConfig, build_toy
from train.loop import FitConfig
from train.scaling import Scaling
from train.trainer import train_distributed

folder = Path(sys.argv[1])
fit = FitConfig(epochs=100_000, metric="error", mode="min")
with connect(Settings(home=folder)):
    try:
        train_distributed(
            build_toy, ToyConfig(notes=folder), fit, Scaling(), name="toy", storage=folder / "runs",
            progress=lambda epoch: print("epoch", epoch.epoch, flush=True),
        )
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


class Holder:
    """Holds the CPUs it was given."""

    def hold(self) -> None:
        """Return when it does."""


def _assert_ports_closed(run: Run, count: int) -> None:
    """The rendezvous of every group of workers has given its port back."""
    ports = run.noted("group")
    assert len(ports) == count
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return Run(tmp_path_factory.mktemp("alone")).train(ALONE, ToyConfig())


@pytest.fixture(scope="module")
def horovod_run(tmp_path_factory: pytest.TempPathFactory, ray_session: "RaySession") -> tuple[Run, TrainedModel, str]:
    assert ray_session
    folder = tmp_path_factory.mktemp("horovod")
    uri = f"sqlite:///{folder}/mlflow.db"
    run = Run(folder)
    return run, run.train(Scaling(), uri=uri), uri


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory: pytest.TempPathFactory, ray_session: "RaySession") -> tuple[Run, TrainedModel]:
    assert ray_session
    run = Run(tmp_path_factory.mktemp("torch"))
    return run, run.train(Scaling(backend="torch"))


def _assert_same_training(first: TrainedModel, second: TrainedModel) -> None:
    """The same gradients after the first step (an epoch of its own) and later, losses, metrics and weights."""
    assert [epoch.epoch for epoch in first.history] == [epoch.epoch for epoch in second.history]
    for mine, other in zip(first.history, second.history, strict=True):
        assert sum(name.startswith("gradient/") for name in mine.metrics) > 40
        assert mine.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-5)
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
    assert first.best_epoch == second.best_epoch
    torch.testing.assert_close(dict(first.weights), dict(second.weights), rtol=1e-4, atol=1e-5)


def test_horovod_on_ray_trains_as_one_process_does(
    horovod_run: tuple[Run, TrainedModel, str], alone: TrainedModel
) -> None:
    run, trained, _ = horovod_run
    _assert_same_training(trained, alone)
    assert run.noted("rank") == {"0", "1"}
    assert run.noted("size") == {"2"}
    assert len(run.noted("pid")) == 2


def test_torch_on_ray_trains_as_one_process_does(torch_run: tuple[Run, TrainedModel], alone: TrainedModel) -> None:
    run, trained = torch_run
    _assert_same_training(trained, alone)
    assert len(run.noted("pid")) == 2


def test_progress_is_told_once_per_epoch(horovod_run: tuple[Run, TrainedModel, str]) -> None:
    run, trained, _ = horovod_run
    assert run.seen == trained.history


def test_the_curve_is_in_mlflow(horovod_run: tuple[Run, TrainedModel, str]) -> None:
    _, trained, uri = horovod_run
    assert trained.run_id is not None
    points = connect(uri).get_metric_history(trained.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(epoch.epoch, epoch.loss) for epoch in trained.history]
    tracked = connect(uri).get_run(trained.run_id)
    assert tracked.data.params["scaling.backend"] == "horovod"
    assert tracked.info.status == "FINISHED"


def test_the_rendezvous_is_closed_after_training(horovod_run: tuple[Run, TrainedModel, str]) -> None:
    _assert_ports_closed(horovod_run[0], 1)


def test_a_finished_training_is_read_not_repeated(horovod_run: tuple[Run, TrainedModel, str]) -> None:
    run, trained, uri = horovod_run
    again = run.train(Scaling(), uri=uri)
    assert len(run.noted("pid")) == 2
    torch.testing.assert_close(again.weights, trained.weights, rtol=0, atol=0)
    assert (again.history, again.run_id) == (trained.history, trained.run_id)


def test_trainings_in_turn_have_the_same_workers_and_new_ones_when_one_was_lost(
    ray_session: "RaySession", alone: TrainedModel, tmp_path: Path
) -> None:
    assert ray_session
    run = Run(tmp_path)
    with same_workers():
        trained = [run.train(Scaling(), name="first")]
        workers = run.noted("pid")
        trained.append(run.train(Scaling(), name="second"))
        assert run.noted("pid") == workers
        os.kill(int(workers.pop()), signal.SIGKILL)
        trained.append(run.train(Scaling(), name="third"))
        assert len(run.noted("pid")) == 4
    for pid in run.noted("pid"):
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 60, "the workers to end")  # type: ignore[misc]
    for each in trained:
        _assert_same_training(each, alone)
    _assert_ports_closed(run, 3)


def test_training_goes_on_after_a_worker_died(ray_session: "RaySession", alone: TrainedModel, tmp_path: Path) -> None:
    assert ray_session
    run = Run(tmp_path)
    config = ToyConfig(notes=run.notes, die_at=(2, 32))
    trained = run.train(Scaling(checkpoint_s=0), config)
    assert (run.notes / "dead").exists()
    _assert_same_training(trained, alone)
    assert [epoch.epoch for epoch in run.seen] == [0, 1, 2, 3]
    assert lineage(run.notes) == undisturbed(config, FIT.epochs)
    first, second = begun(run.notes)
    assert first == (0, 0)
    assert second >= (2, 16), "the second group of workers began before the last checkpoint"
    assert len(run.noted("pid")) == 4
    _assert_ports_closed(run, 2)


def test_a_training_that_lost_its_workers_goes_on_under_the_same_name(
    ray_session: "RaySession", alone: TrainedModel, tmp_path: Path
) -> None:
    assert ray_session
    run = Run(tmp_path)
    config = ToyConfig(notes=run.notes, die_at=(3, 16))
    with pytest.raises(TowerlineError, match=r"lost workers once more than scaling.max_failures=0.*same name"):
        run.train(Scaling(max_failures=0), config)
    trained = run.train(Scaling(backend="torch", max_failures=0), config)
    _assert_same_training(trained, alone)
    assert begun(run.notes) == [(0, 0), (3, 0)]
    assert [epoch.epoch for epoch in run.seen] == [0, 1, 2, 3]


def test_diverged_training_ends_at_once_with_its_message(ray_session: "RaySession", tmp_path: Path) -> None:
    assert ray_session
    run = Run(tmp_path)
    with pytest.raises(TowerlineError, match=r"loss of epoch 0 is nan; try a learning rate below 1e\+30"):
        run.train(Scaling(), ToyConfig(notes=run.notes, learning_rate=1e30))
    assert len(run.noted("pid")) == 2, "what cannot succeed was tried again"
    _assert_ports_closed(run, 1)


def test_resources_that_are_not_there_are_refused_at_once(ray_session: "RaySession", tmp_path: Path) -> None:
    assert ray_session
    started = time.monotonic()
    scaling = Scaling(num_workers=99, start_timeout_s=300)
    with pytest.raises(TowerlineError, match=r"num_workers=99 workers with 1 CPU each, but the cluster has \d+ CPU \("):
        Run(tmp_path).train(scaling)
    (tmp_path / "gpu").mkdir()
    with pytest.raises(TowerlineError, match=r"1 CPU, 1 GPU each, but the cluster has .*0 GPU \(0 free\)"):
        Run(tmp_path / "gpu").train(Scaling(use_gpu=True, start_timeout_s=300))
    assert time.monotonic() - started < 300, "what can never be placed was waited for"


def test_resources_that_others_hold_are_waited_for(ray_session: "RaySession", tmp_path: Path) -> None:
    assert ray_session
    import ray

    total = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
    holder: Any = ray.remote(num_cpus=total - 1)(Holder).remote()
    ray.get(holder.hold.remote(), timeout=300)
    started = time.monotonic()
    with pytest.raises(TowerlineError, match=rf"the cluster has {total} CPU \(1 free\)"):
        Run(tmp_path).train(Scaling(start_timeout_s=1))
    assert time.monotonic() - started >= 1
    ray.kill(holder)


def test_unreachable_mlflow_is_refused_before_training(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    run = Run(tmp_path)
    with pytest.raises(TowerlineError, match=f"MLflow server at {uri} does not answer"):
        run.train(ALONE, uri=uri)
    assert run.seen == []


def test_more_epochs_of_a_finished_training_are_added(alone: TrainedModel, tmp_path: Path) -> None:
    run = Run(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run.train(ALONE, fit=FitConfig(epochs=2, metric="error", mode="min"))
    trained = run.train(ALONE, uri=uri)
    _assert_same_training(trained, alone)
    assert [epoch.epoch for epoch in run.seen] == [0, 1, 2, 3]
    assert trained.run_id is not None
    points = connect(uri).get_metric_history(trained.run_id, "loss")
    assert [point.step for point in points] == [0, 1, 2, 3], "a resumed training shows its whole curve"


@pytest.mark.parametrize("cut", [1, 2])
def test_a_finished_training_whose_result_was_cut_short(alone: TrainedModel, tmp_path: Path, cut: int) -> None:
    """It is gone on with from the checkpoint before; with that one cut short too, the files are named."""
    run = Run(tmp_path)
    checkpoint = run.train(ALONE).checkpoint
    for folder in sorted(checkpoint.parent.glob("checkpoint_*"))[-cut:]:
        os.truncate(folder / "model.safetensors", 100)
    if cut == 2:
        with pytest.raises(TowerlineError, match=rf"{checkpoint}/model.safetensors: not a readable checkpoint"):
            run.train(ALONE)
        return
    again = run.train(ALONE)
    torch.testing.assert_close(again.weights, alone.weights, rtol=0, atol=0)
    assert [epoch.loss for epoch in again.history] == [epoch.loss for epoch in alone.history]


def test_an_error_in_progress_is_not_lost(tmp_path: Path) -> None:
    def stop(result: EpochResult) -> None:
        raise RuntimeError(f"stop at {result.epoch}")

    with pytest.raises(RuntimeError, match="stop at 0"):
        train_distributed(build_toy, ToyConfig(), FIT, ALONE, name="toy", storage=tmp_path, progress=stop)


@pytest.mark.cluster
def test_ctrl_c_ends_the_workers_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """A process of its own, which is sent the signal."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith("epoch 3") for line in lines)
            process.send_signal(signal.SIGINT)
            assert any(line == "interrupted\n" for line in lines)
            assert process.wait(300) == 0
        finally:
            process.kill()
    for path in tmp_path.glob("rank=*"):
        pid = int(path.name.split("pid=")[1].split(",")[0])
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 60, "the workers to end")  # type: ignore[misc]
    kept = Checkpoints(tmp_path / "runs" / "toy").newest()
    assert kept is not None
    assert kept.position.epoch >= 4
