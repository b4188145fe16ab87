"""The services that `benchmarks.serving` compares, each a process of its own with all that it starts."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import tomlkit

from benchmarks.environments import python_beside_ours
from benchmarks.processes import proportional_memory
from benchmarks.serving_load import COUNT, PATH
from benchmarks.serving_plain import DATASET
from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from cluster.ray_start import free_port
from cluster.settings import Settings
from serve.graph import RANKED

STARTS_WITHIN_S = 300.0
STOPS_WITHIN_S = 120.0
DEFAULTS_OF_RAY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
}
"""Ray Serve as it is without our profile."""
BENTO_PACKAGES = Path(__file__).with_name("serving_bento.txt")


@dataclass(frozen=True)
class Side:
    """A service and how it is started."""

    name: str
    command: tuple[str, ...]
    """What follows `python`; `{port}` stands for where it is to listen."""
    replica: str
    """A pattern of the command lines of the processes that answer requests."""
    environment: Mapping[str, str] = field(default_factory=dict)
    recommends: bool = True
    """Whether its answers are recommendations."""
    packages: Path | None = None
    """The file of pinned packages that its Python has to have beside our own."""


def sides(dataset: str, folder: Path) -> dict[str, Side]:
    """All sides. Their configurations are written into `folder`."""
    gateway = r"^ray::ServeReplica:\w+:Gateway"
    all_remote = tuple(name for name in RANKED if name != "limit")
    plain = ("-m", "benchmarks.serving_plain", dataset, "{port}")
    bentoml = ("-m", "bentoml", "serve", "benchmarks.serving_bento:Recommender")
    found = [
        Side("in_process", _served(dataset, folder / "in_process.toml"), gateway),
        Side("in_process_r2", _served(dataset, folder / "in_process_r2.toml", replicas=2), gateway),
        Side("remote", _served(dataset, folder / "remote.toml", ("retrieval", "ranking")), gateway),
        Side("all_remote", _served(dataset, folder / "all_remote.toml", all_remote), gateway),
        Side("fastapi", plain, r"benchmarks\.serving_plain"),
        Side("fastapi_tuned", (*plain, "--workers", "2"), r"multiprocessing\.spawn"),
        Side(
            "serve_default",
            ("-m", "benchmarks.serving_usual", dataset, "{port}"),
            r"^ray::ServeReplica:\w+:UsualGateway",
            DEFAULTS_OF_RAY,
        ),
        Side(
            "bentoml",
            (*bentoml, "--host", "127.0.0.1", "--port", "{port}"),
            r"_bentoml_impl\.worker",
            {DATASET: dataset, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")},
            packages=BENTO_PACKAGES,
        ),
        Side("noop", ("-m", "benchmarks.serving_noop", "{port}"), r"^ray::ServeReplica", recommends=False),
    ]
    return {side.name: side for side in found}


def _served(dataset: str, config: Path, remote: tuple[str, ...] = (), replicas: int = 1) -> tuple[str, ...]:
    """`make serve` with these stages remote and so many gateways; one replica of every other deployment."""
    bounds = {"min": replicas, "max": replicas}
    arguments = {
        "graph": dict.fromkeys(remote, "remote"),
        "gateway_replicas": bounds,
        "stage_replicas": {"min": 1, "max": 1},
    }
    config.write_text(tomlkit.dumps(arguments))
    return ("-m", "jobs.serve_models", "--dataset", dataset, "--config", str(config))


class Running:
    """A side that answers."""

    def __init__(self, side: Side, process: "subprocess.Popen[bytes]", url: str, start_s: float) -> None:
        self.url = url
        self.start_s = start_s
        """Seconds from its start to its first answer."""
        self._side = side
        self._process = psutil.Process(process.pid)

    def cpu_s(self) -> float:
        """Seconds that all its processes have computed so far."""
        total = 0.0
        for each in self._family():
            try:
                times = each.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def replica_mb(self) -> float:
        """Memory of its largest replica (PSS)."""
        return max((proportional_memory(pid) for pid in self._replicas()), default=0.0) / 1e6

    def all_mb(self) -> float:
        """Memory of all its processes (PSS)."""
        return sum(proportional_memory(each.pid) for each in self._family()) / 1e6

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _replicas(self) -> list[int]:
        found = []
        for each in self._family():
            try:
                line = " ".join(each.cmdline())
            except psutil.Error:
                continue
            if re.search(self._side.replica, line):
                found.append(each.pid)
        return found


@contextmanager
def started(side: Side, settings: Settings, log: Path) -> Iterator[Running]:
    """The side, once it has answered; at the end it is stopped. What it says goes to `log`.

    Raises TowerlineError if it ends, or does not answer in time.
    """
    port = free_port()
    environment = os.environ | {
        "TOWERLINE_HOME": str(settings.home),
        "TOWERLINE_SERVE_PORT": str(port),
        "POLARS_MAX_THREADS": "1",
        **side.environment,
    }
    python = str(python_beside_ours(side.packages)) if side.packages else sys.executable
    command = [python, *(each.format(port=port) for each in side.command)]
    url, begun = f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await_answer(side, process, url, log)
            yield Running(side, process, url, time.monotonic() - begun)
        finally:
            _stop(process)


def _await_answer(side: Side, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TowerlineError(f"side {side.name} does not answer; it said in {log}:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}{PATH}", json={"user_id": "1", "count": COUNT}, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ctrl-C, and if that does not help in time, the end of all of its processes."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
            process.kill()
            process.wait()


def lists_of(url: str, users: list[str]) -> list[tuple[str, ...]]:
    """The ids of the items that each user is answered with, in order."""
    found = []
    with httpx.Client(timeout=30) as client:
        for user in users:
            answer = client.post(f"{url}{PATH}", json={"user_id": user, "count": COUNT}).raise_for_status().json()
            found.append(tuple(item["item_id"] for item in answer["items"]))
    return found
