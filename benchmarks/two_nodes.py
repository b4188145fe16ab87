"""A Ray cluster of two nodes on this machine, one of which can be killed."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams

from benchmarks.faults import replicas
from cluster.environment import prepare_environment
from cluster.errors import TowerlineError
from cluster.ray_start import OBJECT_STORE_BYTES, ingress_environment, short_temp_dir, stay_on_loopback

CPUS = 4
"""Logical ones of each node: either takes all replicas of a small service."""
STARTS_WITHIN_S = 60.0


class TwoNodes:
    """The nodes, started by this process."""

    def __init__(self, head: Node, second: Node) -> None:
        self._second = second
        self.address = str(head.gcs_address)
        """host:port to attach to."""

    def require_both(self) -> None:
        """Wait until both take work. Raises TowerlineError if they do not; needs a Ray session."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while sum(node["Alive"] for node in ray.nodes()) < 2:  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                raise TowerlineError(f"the second node is not there after {STARTS_WITHIN_S:.0f} s; run it again")
            time.sleep(0.1)

    def require_replica(self, deployment: str) -> None:
        """Raise TowerlineError if the second node has no replica of a deployment, and its end would harm nobody."""
        if not replicas(deployment, self._raylet()):
            raise TowerlineError(f"the second node has no replica of {deployment}; run it again")

    def kill_second(self) -> None:
        """Kill -9 of the second node, and of all that runs there."""
        workers = self._raylet().children(recursive=True)
        _kill(self._second)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    def _raylet(self) -> psutil.Process:
        (raylet,) = self._second.all_processes["raylet"]
        return psutil.Process(raylet.process.pid)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """They run until the block ends. To be called before this process is in a Ray session."""
    prepare_environment()
    stay_on_loopback()
    temp_dir = short_temp_dir()
    os.environ.update(ingress_environment(temp_dir))
    nodes: list[Node] = []
    try:
        nodes.append(_node(head=True, temp_dir=str(temp_dir)))
        nodes.append(_node(head=False, gcs_address=nodes[0].gcs_address, include_log_monitor=False))
        yield TwoNodes(*nodes)
    finally:
        for node in reversed(nodes):
            _kill(node)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _node(*, head: bool, **options: Any) -> Node:
    parameters = RayParams(
        num_cpus=CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        **options,
    )
    return Node(parameters, head=head, shutdown_at_exit=True, spawn_reaper=True)


def _kill(node: Node) -> None:
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
