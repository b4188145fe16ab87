"""`make cluster-up` and `make cluster-down`, jobs submitted to it, and attaching from outside."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.errors import TowerlineError
from cluster.local_cluster import LocalCluster, down, note_path, processes, read_note, up
from cluster.settings import Settings

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
LOOKS_AROUND = """
import os, sys
import ray
from cluster.provenance import git_commit
from cluster.session import connect
from cluster.settings import Settings

@ray.remote
def where():
    import cluster.errors
    return cluster.errors.__file__, os.environ.get("TOWERLINE_HOME")

settings = Settings()
with connect(settings) as session:
    file, home = ray.get(where.remote())
    print("|".join([session.origin, sys.executable, str(settings.home), str(home), file, git_commit()]))
"""


def _submit(cluster: LocalCluster, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """As a person does: `ray job submit` from the repository, by a `ray` that is not told where `python` is."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", cluster.dashboard_url, "--working-dir", ".", *options]
    return subprocess.run(
        [*command, "--", "python", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_up_again_says_that_it_is_up(local_cluster: tuple[Settings, LocalCluster]) -> None:
    settings, cluster = local_cluster
    assert up(settings) == (cluster, False)


def test_every_listener_is_on_loopback(local_cluster: tuple[Settings, LocalCluster]) -> None:
    listeners = [
        connection.laddr.ip
        for process in processes(local_cluster[1])
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listeners
    assert {ip.removeprefix("::ffff:") for ip in listeners} <= {"127.0.0.1", "::1"}


def test_a_submitted_job_has_this_python_this_home_and_its_own_copy(
    local_cluster: tuple[Settings, LocalCluster],
) -> None:
    settings, cluster = local_cluster
    done = _submit(cluster, LOOKS_AROUND)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("attached|"))
    _, python, home, worker_home, file, commit = line.split("|")
    assert Path(python).resolve() == Path(sys.executable).resolve()
    assert home == worker_home == str(settings.home)
    assert file.startswith(str(cluster.temp_dir)), "the worker runs the code that was submitted"
    assert commit.startswith("ray-package-")


def test_a_job_without_an_absolute_home_is_refused(local_cluster: tuple[Settings, LocalCluster]) -> None:
    done = _submit(local_cluster[1], LOOKS_AROUND, "--runtime-env-json", '{"env_vars": {"TOWERLINE_HOME": "here"}}')
    assert done.returncode != 0
    assert "TOWERLINE_HOME is 'here', a relative path" in done.stdout


def test_from_outside_workers_get_the_repository(local_cluster: tuple[Settings, LocalCluster], tmp_path: Path) -> None:
    """By host:port; `auto` is in tests/jobs/test_readme.py."""
    settings, cluster = local_cluster
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TOWERLINE_HOME": str(settings.home),
        "TOWERLINE_RAY_ADDRESS": cluster.gcs_address,
    }
    command = [sys.executable, "-c", LOOKS_AROUND]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    origin, _, _, worker_home, file, _ = done.stdout.strip().split("|")
    assert origin == "attached"
    assert worker_home == str(settings.home)
    assert file.startswith(str(cluster.temp_dir))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TowerlineError, match=f"dashboard_port = {port}: the port is in use"):
            up(Settings(home=tmp_path, dashboard_port=port))
    assert read_note(Settings(home=tmp_path)) is None


def test_down_without_up_says_so(tmp_path: Path) -> None:
    assert not down(Settings(home=tmp_path))


def test_a_note_from_before_a_crash_ends_no_stranger(tmp_path: Path) -> None:
    """The noted process id is that of another process now, of this test's own."""
    settings = Settings(home=tmp_path)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with stranger:
        note = LocalCluster(
            gcs_address="127.0.0.1:1",
            dashboard_url="http://127.0.0.1:2",
            pid=stranger.pid,
            created=psutil.Process(stranger.pid).create_time() - 100,
            temp_dir=tmp_path / "temp",
        )
        note_path(settings).write_text(note.model_dump_json())
        assert down(settings)
        assert stranger.poll() is None
        stranger.kill()
    assert read_note(settings) is None


@pytest.mark.parametrize("crash", [False, True], ids=["running", "crashed"])
def test_down_leaves_nothing_of_it_and_everything_else(
    local_cluster: tuple[Settings, LocalCluster], tmp_path: Path, crash: bool
) -> None:
    settings = Settings(home=tmp_path, dashboard_port=0, num_cpus=1)
    cluster, started = up(settings)
    assert started
    submit = ["job", "submit", "--no-wait", "--address", cluster.dashboard_url, "--", "sleep", "600"]
    subprocess.run([str(Path(sys.executable).with_name("ray")), *submit], cwd=tmp_path, check=True, capture_output=True)
    deadline = time.monotonic() + 300
    while not any(process.name() == "sleep" for process in processes(cluster)) and time.monotonic() < deadline:
        time.sleep(0.2)
    running = processes(cluster)
    assert any(process.name() == "sleep" for process in running)
    if crash:
        psutil.Process(cluster.pid).kill()
    assert down(settings)
    assert not [process for process in running if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not cluster.temp_dir.exists()
    assert up(local_cluster[0]) == (local_cluster[1], False), "the other cluster still takes jobs"
