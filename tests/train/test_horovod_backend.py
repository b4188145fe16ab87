"""What the backend does before and after training; training itself is in test_trainer.py."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.errors import TowerlineError
from tests.train.toy_task import ToyConfig, ToyTask, build_toy
from train.horovod_options import HorovodOptions
from train.loop import FitConfig
from train.rendezvous import Rendezvous, assign_slots, find_interface, slot_environment
from train.scaling import Scaling
from train.trainer import train_distributed

if TYPE_CHECKING:
    from cluster.session import RaySession

UNEVEN = """
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.train.toy_task import ToyConfig, ToyTask, build_toy
from train.loop import FitConfig
from train.scaling import Scaling
from train.trainer import train_distributed

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 * 2**20})
try:
    cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    ray.init(cluster.address)
    fit = FitConfig(epochs=3, metric="error", mode="min")
    trained = train_distributed(
        build_toy, ToyConfig(notes=folder), fit, Scaling(num_workers=3), name="uneven", storage=folder / "runs"
    )
    print("final error", trained.history[-1].metrics["error"])
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_slots_of_uneven_nodes() -> None:
    plan = assign_slots(["a", "a", "b"])
    assert [(s.rank, s.size, s.local_rank, s.local_size, s.cross_rank, s.cross_size) for s in plan] == [
        (0, 3, 0, 2, 0, 2),
        (1, 3, 1, 2, 0, 1),
        (2, 3, 0, 1, 1, 2),
    ]


def test_ranks_that_are_not_grouped_by_node_are_refused() -> None:
    with pytest.raises(TowerlineError, match=r"nodes by rank are \['a', 'b', 'a'\]"):
        assign_slots(["a", "b", "a"])


def test_missing_horovod_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.runner.common.util.hosts", None)
    with pytest.raises(TowerlineError, match="run `make install`, which builds it, or train with backend 'torch'"):
        assign_slots(["a"])


def test_rendezvous_listens_where_told_and_gives_the_port_back() -> None:
    plan = assign_slots(["a"])
    with Rendezvous("127.0.0.1", plan) as rendezvous:
        url = f"http://127.0.0.1:{rendezvous.port}/scope/key"
        urllib.request.urlopen(urllib.request.Request(url, data=b"value", method="PUT"), timeout=60).close()
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == b"value"
    with socket.create_server(("127.0.0.1", rendezvous.port)):
        pass


def test_slot_environment_says_how_long_to_wait() -> None:
    environment = slot_environment(assign_slots(["a", "a"])[1], "10.0.0.1", 4711, timeout_s=7, stall_timeout_s=9)
    assert environment["HOROVOD_RANK"] == "1"
    assert environment["HOROVOD_GLOO_RENDEZVOUS_PORT"] == "4711"
    assert environment["HOROVOD_GLOO_TIMEOUT_SECONDS"] == "7"
    assert environment["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == "9"


def test_interface_is_found_by_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("192.0.2.1", wanted="lo") == "lo"


def test_unknown_interface_and_address_name_those_there_are() -> None:
    with pytest.raises(TowerlineError, match=r"interface is 'eth99'.*lo \(127\.0\.0\.1"):
        find_interface("127.0.0.1", wanted="eth99")
    with pytest.raises(TowerlineError, match=r"holds its Ray address 192\.0\.2\.1; set .*lo \(127\.0\.0\.1"):
        find_interface("192.0.2.1")


def test_unknown_interface_ends_training_with_its_message(ray_session: "RaySession", tmp_path: Path) -> None:
    assert ray_session
    import ray

    with pytest.raises(TowerlineError, match="interface is 'eth99'"):
        train_distributed(
            build_toy,
            ToyConfig(),
            FitConfig(epochs=1),
            Scaling(interface="eth99"),
            name="no-interface",
            storage=tmp_path,
        )
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = {}
    deadline = time.monotonic() + 120
    while free.get("CPU") != total["CPU"]:
        assert time.monotonic() < deadline, f"of {total['CPU']} CPUs, {free.get('CPU')} were given back"
        time.sleep(0.1)
        free = ray.available_resources()  # type: ignore[no-untyped-call]


@pytest.mark.cluster
def test_three_workers_on_two_uneven_nodes(tmp_path: Path) -> None:
    """A process of its own, for it starts a cluster of its own."""
    finished = subprocess.run(
        [sys.executable, "-c", UNEVEN, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr
    fit = FitConfig(epochs=3, metric="error", mode="min")
    alone = train_distributed(build_toy, ToyConfig(), fit, Scaling(backend="none"), name="alone", storage=tmp_path)
    error = float(finished.stdout.split("final error")[1].split()[0])
    assert error == pytest.approx(alone.history[-1].metrics["error"], rel=1e-4)
    assert {path.name.split(",pid")[0] for path in tmp_path.glob("rank=*")} == {
        f"rank={rank},size=3" for rank in range(3)
    }


def _note_environment(folder: Path) -> ToyTask:
    names = ("HOROVOD_FUSION_THRESHOLD", "HOROVOD_CYCLE_TIME")
    (folder / f"rank {os.environ['HOROVOD_RANK']}").write_text(" ".join(os.environ[name] for name in names))
    return build_toy(ToyConfig())


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_options_reach_the_workers(tmp_path: Path) -> None:
    options = HorovodOptions(fusion_threshold_mb=1, cycle_time_ms=2, compression="fp16")
    fit = FitConfig(epochs=2, metric="error", mode="min", backward_passes_per_step=2)
    storage = tmp_path / "runs"
    alone = train_distributed(build_toy, ToyConfig(), fit, Scaling(backend="none"), name="alone", storage=storage)
    scaling = Scaling(horovod=options)
    trained = train_distributed(_note_environment, tmp_path, fit, scaling, name="two", storage=storage)
    assert {(tmp_path / f"rank {rank}").read_text() for rank in (0, 1)} == {f"{2**20} 2"}
    assert trained.history[-1].loss != alone.history[-1].loss
    assert trained.history[-1].loss == pytest.approx(alone.history[-1].loss, rel=0.01)
