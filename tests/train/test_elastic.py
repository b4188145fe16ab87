"""Trainings whose workers come, go and crash, on clusters of their own; what each example is used for is in the notes.

The same without Ray, and with sizes that change from group to group, is in test_resumable.py.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
from tests.train.toy_task import ToyConfig, begun, build_toy, hurry, lineage, undisturbed
from tests.waiting import wait_until
from train.checkpoint import read_best_weights
from train.loop import FitConfig
from train.scaling import Scaling
from train.trainer import train_distributed

if TYPE_CHECKING:
    from cluster.session import RaySession

EXAMPLES = 2_000
FIT = FitConfig(epochs=3, metric="error", mode="min")
DRIVER = """
import sys
from pathlib import Path

import ray

from cluster.environment import prepare_environment
from tests.train.test_elastic import FIT, toy
from tests.train.toy_task import build_toy
from train.scaling import Scaling
from train.trainer import train_distributed

prepare_environment()
folder = Path(sys.argv[1])
ray.init(sys.argv[2], log_to_driver=False)
scaling = Scaling(num_workers=(1, 3), max_failures=20, checkpoint_s=0.5, resize_s=1, timeout_s=20, start_timeout_s=60)
trained = train_distributed(build_toy, toy(folder), FIT, scaling, name="toy", storage=folder / "runs")
print("trained", trained.checkpoint)
"""
CLUSTER = """
import json
import sys

from cluster.environment import prepare_environment

prepare_environment()

from ray.cluster_utils import Cluster

memory = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
nodes = {}
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    command, name, cpus = json.loads(line)
    if command == "add":
        nodes[name] = cluster.add_node(num_cpus=cpus, **memory)
    elif command == "remove":
        cluster.remove_node(nodes.pop(name), allow_graceful=False)
    print(json.dumps(command), flush=True)
cluster.shutdown()
"""


def toy(folder: Path) -> ToyConfig:
    """Minutes long, unless it is told to hurry: none of what happens to it comes too late."""
    return ToyConfig(notes=folder, examples=EXAMPLES, batch_size=4, step_s=0.1)


class NodesOfACluster:
    """A process that holds a Ray cluster whose nodes come and go."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def tell(self, command: str, name: str, cpus: int = 0) -> None:
        """`add` or `remove` a node."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, name, cpus]) + "\n")
        self._process.stdin.flush()
        assert self._answer() == command

    def close(self) -> None:
        """End all nodes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Notes:
    """What the workers noted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def places(self) -> list[dict[str, str]]:
        """Rank, size, process and group of every worker so far."""
        return [dict(part.split("=") for part in path.name.split(",")) for path in self._folder.glob("rank=*")]

    def wait_for_new_group(self, size: int, known: set[str]) -> None:
        """Wait until a group of this size that is not `known` has taken some steps."""

        def there() -> bool:
            files = list(self._folder.glob(f"rank=0,size={size},*"))
            new = [path for path in files if path.name.split("group=")[1] not in known]
            return any(len(path.read_text().splitlines()) >= 10 for path in new)

        wait_until(there, 600, f"a new group of {size} workers, beside {self.places()}")

    def groups(self) -> set[str]:
        return {place["group"] for place in self.places()}

    def workers_of_last_group(self) -> list[int]:
        """Their processes by rank."""
        newest = max(self._folder.glob("rank=0,*"), key=lambda path: path.stat().st_mtime_ns).name.split("group=")[1]
        members = [place for place in self.places() if place["group"] == newest]
        return [int(place["pid"]) for place in sorted(members, key=lambda place: int(place["rank"]))]


@pytest.mark.cluster
def test_workers_nodes_and_the_driver_come_and_go(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    cluster = NodesOfACluster()

    def expect(size: int, change: Callable[[], object]) -> None:
        known = notes.groups()
        change()
        notes.wait_for_new_group(size, known)

    def submit() -> None:
        drivers.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(tmp_path), cluster.address], stdout=subprocess.PIPE, text=True
            )
        )

    drivers: list[subprocess.Popen[str]] = []
    try:
        cluster.tell("add", "two", 2)
        expect(3, submit)
        expect(3, lambda: os.kill(notes.workers_of_last_group()[1], signal.SIGKILL))
        expect(3, lambda: os.kill(notes.workers_of_last_group()[2], signal.SIGSTOP))
        expect(1, lambda: cluster.tell("remove", "two"))
        expect(2, lambda: cluster.tell("add", "one", 1))
        drivers[0].kill()
        drivers[0].wait()
        expect(2, submit)
        hurry(tmp_path)
        output, _ = drivers[1].communicate(timeout=600)
        assert drivers[1].returncode == 0
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
        cluster.close()
    assert lineage(tmp_path) == undisturbed(toy(tmp_path), FIT.epochs)
    assert begun(tmp_path)[0] == (0, 0)
    assert all(start > (0, 0) for start in begun(tmp_path)[1:]), "a group began from the start"
    weights, _, history = read_best_weights(Path(output.split("trained ")[1].strip()))
    (tmp_path / "alone").mkdir()
    alone = train_distributed(
        build_toy,
        ToyConfig(examples=EXAMPLES, batch_size=4),
        FIT,
        Scaling(backend="none"),
        name="alone",
        storage=tmp_path,
    )
    assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in alone.history], rel=1e-3)
    for name, weight in alone.weights.items():
        assert weights[name].numpy() == pytest.approx(weight.numpy(), rel=1e-2, abs=1e-3)


@pytest.fixture
def two_free(ray_session: "RaySession") -> Iterator[int]:
    """The CPUs of the session, of which all but two are held by someone else."""
    assert ray_session
    import ray

    total = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
    holder: Any = ray.remote(num_cpus=total - 2)(Holder).remote()
    ray.get(holder.hold.remote(), timeout=300)
    yield total
    ray.kill(holder)


def test_an_elastic_training_takes_what_is_free_and_leaves_the_rest(two_free: int, tmp_path: Path) -> None:
    scaling = Scaling(num_workers=(1, two_free))
    config = ToyConfig(notes=tmp_path)
    trained = train_distributed(build_toy, config, FIT, scaling, name="toy", storage=tmp_path / "runs")
    assert len(trained.history) == FIT.epochs
    assert {place["size"] for place in Notes(tmp_path).places()} == {"2"}


def test_room_for_less_than_the_fewest_is_waited_for_and_then_refused(two_free: int) -> None:
    from ray.train.v2.api.config import ScalingConfig

    from train.elastic import FreeResourcesPolicy

    workers = (3, two_free)
    config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0})
    policy = FreeResourcesPolicy(config, Scaling(num_workers=workers), "toy", patience_s=0.2, held=Counter())
    policy.after_controller_start(SimpleNamespace(run_id="waits"))  # type: ignore[arg-type]
    try:
        assert type(policy.make_decision_for_non_running_worker_group()).__name__ == "NoopDecision"
        with pytest.raises(TowerlineError, match=r"num_workers=\(3, \d+\) workers with 1 CPU each.*\(2 free\)"):
            policy.make_decision_for_non_running_worker_group()
    finally:
        policy.before_controller_abort()


def test_fewest_and_most_are_in_order() -> None:
    with pytest.raises(ValidationError, match=r"num_workers is \[3, 2\], expected the fewest and the most"):
        Scaling(num_workers=(3, 2))
    assert Scaling.model_validate({"num_workers": [1, 4]}).elastic
    assert not Scaling(num_workers=4).elastic


class Holder:
    """Holds the CPUs it was given."""

    def hold(self) -> None:
        """Return when it does."""
