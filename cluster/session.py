"""One call that gives a Ray session, the same in a job, a submitted job and a notebook: `connect(Settings())`."""

import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import ray

from cluster.environment import in_submitted_job, prepare_environment
from cluster.errors import TowerlineError
from cluster.local_cluster import read_note
from cluster.provenance import ROOT
from cluster.ray_start import OBJECT_STORE_BYTES, ingress_environment, short_temp_dir, stay_on_loopback
from cluster.settings import Settings


@dataclass
class RaySession:
    """A connection to Ray. As a context manager, or by `close()`, it ends what it started and nothing else."""

    address: str
    """GCS address, host:port."""

    origin: Literal["started", "attached", "shared"]
    """Whether Ray was started for this session, ran already, or is the session this process already had."""

    temp_dir: Path | None = None
    """Folder of the logs and sockets of a Ray that was started here."""

    def close(self, keep_logs: bool = False) -> None:
        """Stop a Ray that was started for this session and delete its folder, or detach from one that was running.

        A shared session is left alone. Safe to repeat.
        """
        if self.origin != "shared" and ray.is_initialized():
            ray.shutdown()
        if self.temp_dir is not None and not keep_logs:
            shutil.rmtree(self.temp_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep_logs=isinstance(error, Exception))


def connect(settings: Settings, *, dashboard: bool = False, log_to_driver: bool = True) -> RaySession:
    """Attach to the Ray cluster that `settings` or the environment name, or start a session on this machine.

    A process that already is in a session gets that one. `dashboard` and `settings.num_cpus` only matter when a
    session is started; `log_to_driver` shows what workers print.

    Raises:
        TowerlineError: the address cannot be used or nobody answers there.
    """
    prepare_environment()
    _prepare_ray_data()
    if ray.is_initialized():
        return RaySession(ray.get_runtime_context().gcs_address, "shared")
    with _signal_handlers_kept():
        if address := _address(settings):
            return _attach(address, settings, log_to_driver)
        return _start(settings, dashboard, log_to_driver)


def _start(settings: Settings, dashboard: bool, log_to_driver: bool) -> RaySession:
    stay_on_loopback()
    temp_dir = short_temp_dir()
    try:
        with _environment(ingress_environment(temp_dir)):
            ray.init(
                "local",
                num_cpus=settings.num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=dashboard,
                log_to_driver=log_to_driver,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temp_dir),
            )
    except BaseException:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)
        raise
    return RaySession(ray.get_runtime_context().gcs_address, "started", temp_dir)


def _attach(address: str, settings: Settings, log_to_driver: bool) -> RaySession:
    """A submitted job has its working directory already; a notebook brings the repository, less what git ignores."""
    runtime_env: dict[str, Any] = {}
    if address.startswith(("127.", "localhost:")):
        stay_on_loopback()
    if not in_submitted_job():
        _probe(address)
        runtime_env = {
            "working_dir": str(ROOT),
            "excludes": ["/.git/"],
            "env_vars": {"TOWERLINE_HOME": str(settings.home)},
        }
    try:
        ray.init(address, runtime_env=runtime_env, log_to_driver=log_to_driver, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        raise TowerlineError(f"Ray cluster at {address}: {error}") from error
    return RaySession(address, "attached")


def _address(settings: Settings) -> str:
    """The cluster to attach to, empty for none."""
    address = settings.ray_address or os.environ.get("RAY_ADDRESS", "")
    if address == "auto" and not in_submitted_job():
        cluster = read_note(settings)
        if cluster is None or not cluster.is_running():
            raise TowerlineError(
                f"TOWERLINE_RAY_ADDRESS is 'auto', but no cluster runs with TOWERLINE_HOME={settings.home}; "
                "start one with `make cluster-up`"
            )
        return cluster.gcs_address
    if address.startswith("http"):
        raise TowerlineError(
            f"TOWERLINE_RAY_ADDRESS is {address!r}, the address of a job server; set the cluster's own host:port, "
            f"or submit the job there: ray job submit --address {address} --working-dir . -- python -m jobs.…"
        )
    return address


def _probe(address: str) -> None:
    """Notice within seconds that nobody listens; Ray's own connection attempt takes a minute to say so."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise TowerlineError(f"TOWERLINE_RAY_ADDRESS is {address!r}, expected host:port")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise TowerlineError(
            f"Ray cluster at {address} does not answer ({error}); start one with `make cluster-up`, or unset "
            "TOWERLINE_RAY_ADDRESS to start a session here"
        ) from error


def _prepare_ray_data() -> None:
    """Ray Data reads its environment when imported; give the same to one that was imported too early."""
    if "ray.data.context" in sys.modules:
        from ray.data.context import DataContext, ShuffleStrategy

        context = DataContext.get_current()
        context.shuffle_strategy = ShuffleStrategy(os.environ["RAY_DATA_DEFAULT_SHUFFLE_STRATEGY"])
        context.enable_progress_bars = os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] == "0"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """For what is started meanwhile, these environment variables are set."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """`ray.init` takes over SIGTERM; a job handles it as it handles Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)
