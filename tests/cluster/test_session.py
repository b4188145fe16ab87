"""Starting, sharing and ending a Ray session."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from cluster.session import RaySession, connect
from cluster.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import time
from cluster.job import run_job

def main(arguments):
    from cluster.session import connect
    from cluster.settings import Settings
    with connect(Settings(num_cpus=1)) as session:
        print(session.temp_dir, flush=True)
        time.sleep(600)

run_job(main)
"""


def _start_job(environment: dict[str, str]) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", JOB],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def _wait_until_gone(session_id: int, seconds: float) -> list[str]:
    """What still runs in that session after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        left = [process.name() for process in psutil.process_iter() if _session_of(process.pid) == session_id]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_a_worker_imports_the_rooms_and_prepares_its_environment(ray_session: RaySession) -> None:
    @ray.remote
    def look() -> tuple[str, str | None]:
        import cluster.errors

        return cluster.errors.__file__, os.environ.get("RAY_DATA_DEFAULT_SHUFFLE_STRATEGY")

    assert ray_session.origin == "started"
    assert ray.get(look.remote()) == (str(ROOT / "cluster" / "errors.py"), "sort_shuffle_pull_based")


def test_every_listener_is_on_loopback(ray_session: RaySession) -> None:
    assert ray_session.address.startswith("127.0.0.1:")
    listeners = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listeners
    assert {ip.removeprefix("::ffff:") for ip in listeners} <= {"127.0.0.1", "::1"}


def test_a_second_connection_shares_the_session_and_does_not_end_it(ray_session: RaySession) -> None:
    with connect(Settings()) as second:
        assert (second.address, second.origin) == (ray_session.address, "shared")
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_session")
def test_ray_data_shuffles_as_the_environment_says() -> None:
    from ray.data.context import DataContext, ShuffleStrategy

    connect(Settings()).close()
    assert DataContext.get_current().shuffle_strategy == ShuffleStrategy.SORT_SHUFFLE_PULL_BASED


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.cluster)])
def test_an_interrupted_job_ends_its_ray(number: signal.Signals) -> None:
    process, temp_dir = _start_job({})
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: Ray's processes get it too
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.endswith("interrupted; run the same command again to go on\n")
    assert _wait_until_gone(process.pid, 120) == []
    assert not temp_dir.exists()


@pytest.mark.cluster  # Ray's two agents try for 60 s to report the death of the node, then follow it
def test_a_killed_job_takes_its_ray_with_it() -> None:
    process, _ = _start_job({})
    with process:
        process.kill()
    assert _wait_until_gone(process.pid, 300) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "error: Ray cluster at 127.0.0.1:1 does not answer"),
        (
            "http://127.0.0.1:8265",
            "error: TOWERLINE_RAY_ADDRESS is 'http://127.0.0.1:8265', the address of a job",
        ),
        ("somewhere", "error: TOWERLINE_RAY_ADDRESS is 'somewhere', expected host:port"),
        ("auto", "error: TOWERLINE_RAY_ADDRESS is 'auto', but no cluster runs with TOWERLINE_HOME="),
    ],
)
def test_an_address_of_no_use_is_said_so(tmp_path: Path, address: str, message: str) -> None:
    process, _ = _start_job({"TOWERLINE_RAY_ADDRESS": address, "TOWERLINE_HOME": str(tmp_path)})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith(message)
