"""A real Ray cluster on this machine, with its dashboard and job server: `make cluster-up` and `make cluster-down`.

`up` starts `ray start --head` with ports, folder and home of its own, so that it runs beside any other Ray, and notes
it in `$TOWERLINE_HOME/cluster.json`. `down` stops just that one: by process, never by `ray stop`, which ends every Ray
of the machine.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
from pydantic import BaseModel, ConfigDict

from cluster.environment import prepare_environment
from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.job import run_job
from cluster.monitoring.prometheus import prometheus_config, write_prometheus_config
from cluster.ray_start import OBJECT_STORE_BYTES, free_port, ingress_environment, short_temp_dir, stay_on_loopback
from cluster.settings import Settings

LOOPBACK = "127.0.0.1"
START_SECONDS = 90
STOP_SECONDS = 20
SAME_SECONDS = 2
"""Two readings of one process's time of creation differ by less."""
MARK = "TOWERLINE_CLUSTER"
"""Environment variable that every process of the cluster inherits; its value is the cluster's folder."""


class LocalCluster(BaseModel):
    """What `up` notes about the cluster it started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gcs_address: str
    """host:port to attach to."""

    dashboard_url: str
    """Dashboard and job server."""

    pid: int
    """Of the process that started the others and ends them."""

    created: float
    """When that process was created, in seconds since the epoch: a process id alone may have been used again."""

    temp_dir: Path
    """Folder of the cluster's logs and sockets."""

    def is_running(self) -> bool:
        """Whether the process that `up` started still runs."""
        try:
            return self.owns_pid() and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def owns_pid(self) -> bool:
        """Whether no other process has been given the process id since."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.created) < SAME_SECONDS)
        except psutil.NoSuchProcess:
            return True


def note_path(settings: Settings) -> Path:
    return settings.home / "cluster.json"


def read_note(settings: Settings) -> LocalCluster | None:
    """The cluster that was last started with this home and not stopped; it may have died since."""
    try:
        return LocalCluster.model_validate_json(note_path(settings).read_text())
    except FileNotFoundError:
        return None


def up(settings: Settings) -> tuple[LocalCluster, bool]:
    """Start the cluster unless it runs; also tells whether it was started now. Returns once it takes jobs.

    Raises:
        TowerlineError: a port is in use, or Ray did not start.
    """
    noted = read_note(settings)
    if noted and noted.is_running():
        _wait_until_ready(noted, settings)
        return noted, False
    if noted:
        down(settings)
    cluster = _start(settings)
    try:
        _wait_until_ready(cluster, settings)
    except BaseException:
        down(settings)
        raise
    return cluster, True


def down(settings: Settings) -> bool:
    """Stop the cluster and everything it runs; False if there is none. Nothing of it is left after this.

    Raises:
        TowerlineError: a process of it could not be stopped.
    """
    cluster = read_note(settings)
    if cluster is None:
        return False
    _stop(cluster)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    note_path(settings).unlink(missing_ok=True)
    return True


def _start(settings: Settings) -> LocalCluster:
    gcs_port = _port("cluster_port", settings.cluster_port)
    dashboard_port = _port("dashboard_port", settings.dashboard_port)
    temp_dir = short_temp_dir()
    settings.home.mkdir(parents=True, exist_ok=True)
    with _log_path(settings).open("a") as log:  # why the last one died is not overwritten
        process = subprocess.Popen(
            _command(settings, gcs_port, dashboard_port, temp_dir),
            env=_environment(settings, temp_dir),
            cwd=settings.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives this process, which need not warn about that
    cluster = LocalCluster(
        gcs_address=f"{LOOPBACK}:{gcs_port}",
        dashboard_url=f"http://{LOOPBACK}:{dashboard_port}",
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        temp_dir=temp_dir,
    )
    write_atomically(note_path(settings), cluster.model_dump_json(indent=2))
    write_prometheus_config(settings, temp_dir)
    return cluster


def _command(settings: Settings, gcs_port: int, dashboard_port: int, temp_dir: Path) -> list[str]:
    """`ray start`, which stays and ends the others when it ends; each port that has a fixed default is given."""
    options = {
        "node-ip-address": LOOPBACK,
        "port": gcs_port,
        "dashboard-host": LOOPBACK,
        "dashboard-port": dashboard_port,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "min-worker-port": 0,  # any free one, instead of a range that every Ray would take
        "max-worker-port": 0,
        "num-cpus": settings.num_cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": temp_dir,
    }
    ray = Path(sys.executable).with_name("ray")
    return [str(ray), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]


def _environment(settings: Settings, temp_dir: Path) -> dict[str, str]:
    """Jobs inherit it: their `python` is the one that runs here, and their home is this one."""
    prepare_environment()
    stay_on_loopback()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    own = {"PATH": path, "TOWERLINE_HOME": str(settings.home), MARK: str(temp_dir)}
    return environment | ingress_environment(temp_dir) | own


def _port(field: str, port: int) -> int:
    """`port` if it is free, a free one for 0."""
    if port == 0:
        return free_port()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise TowerlineError(
                f"{field} = {port}: the port is in use on {LOOPBACK} ({error.strerror}); stop what listens there, or "
                f"set TOWERLINE_{field.upper()} to another port, 0 for any free one"
            ) from error
    return port


def _wait_until_ready(cluster: LocalCluster, settings: Settings) -> None:
    """Return when the job server lists its jobs."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not cluster.is_running():
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{cluster.dashboard_url}/api/jobs/", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.2)
    last_lines = "\n  ".join(_log_path(settings).read_text().splitlines()[-8:])
    raise TowerlineError(f"Ray did not start; the end of {_log_path(settings)}:\n  {last_lines}")


def _log_path(settings: Settings) -> Path:
    return settings.home / "cluster.log"


def _stop(cluster: LocalCluster) -> None:
    if cluster.is_running():
        running = processes(cluster)
        psutil.Process(cluster.pid).terminate()
        psutil.wait_procs(running, timeout=STOP_SECONDS)
    remaining = processes(cluster)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=STOP_SECONDS)
    if left := processes(cluster):
        raise TowerlineError(f"these processes of the cluster could not be stopped: {[each.pid for each in left]}")


def processes(cluster: LocalCluster) -> list[psutil.Process]:
    """Every process that the cluster started and that still runs, jobs and their servers included.

    Known by the inherited mark, or by the session, since Ray's own processes overwrite their environment with a title.
    A session's id is not given to another process while the session has members, except by a reboot.
    """
    if psutil.boot_time() > cluster.created:
        return []
    session = cluster.pid if cluster.owns_pid() else None
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session or process.environ().get(MARK) == str(cluster.temp_dir):
                found.append(process)
    return found


def _describe(cluster: LocalCluster, settings: Settings) -> str:
    return "\n".join(
        [
            f"  dashboard  {cluster.dashboard_url}",
            f"  submit     ray job submit --address {cluster.dashboard_url} --working-dir . -- python -m jobs.…",
            f"  attach     export TOWERLINE_RAY_ADDRESS={cluster.gcs_address}",
            f"  metrics    prometheus --config.file={prometheus_config(settings)}",
            "  stop       make cluster-down",
        ]
    )


def main(arguments: list[str]) -> None:
    """`up` or `down`."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local_cluster", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["up", "down"])
    action = parser.parse_args(arguments).action
    settings = Settings()
    if action == "up":
        cluster, started = up(settings)
        print(f"a Ray cluster {'runs' if started else 'is already up'}, home {settings.home}")
        print(_describe(cluster, settings))
    else:
        print("the cluster is stopped" if down(settings) else f"no cluster is up with home {settings.home}")


if __name__ == "__main__":
    run_job(main)
