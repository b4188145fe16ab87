"""The endpoint as a process of its own: it says where it is, stops when told, and a kill leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.settings import Settings
from serve.loading import online_store
from tests.serve.conftest import HISTORY

pytestmark = pytest.mark.cluster


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m jobs.serve_models --dataset shop` in a process group of its own, and the URL that it printed."""
    environment = os.environ | {
        "TOWERLINE_HOME": str(settings.home),
        "TOWERLINE_SERVE_PORT": str(settings.serve_port),
        "TOWERLINE_NUM_CPUS": "2",
    }
    command = [sys.executable, "-m", "jobs.serve_models", "--dataset", "shop"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True, cwd=_root()
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"serving data set shop at (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail(f"it ended with status {process.wait()} before it served")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _root() -> Path:
    return Path(__file__).parents[2]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


TWO_NODES = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
from cluster.environment import prepare_environment
from cluster.errors import TowerlineError
from cluster.session import connect
from cluster.settings import Settings
from serve.config import AppConfig
from serve.session import running

prepare_environment()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
try:
    for store in ("", "redis://127.0.0.1:6379/0"):
        settings = Settings(home=Path(sys.argv[1]), ray_address=cluster.address, online_store=store)
        with connect(settings, log_to_driver=False):
            try:
                with running(settings, AppConfig(dataset="shop")):
                    pass
            except TowerlineError as error:
                print(error, flush=True)
finally:
    cluster.shutdown()
"""


def test_several_nodes_need_one_redis(tmp_path: Path) -> None:
    """SQLite is refused by name; with Redis it goes on to the next thing that is missing."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=_root(),
    )
    with_sqlite, with_redis = done.stdout.strip().splitlines()[-2:]
    assert re.search(r"this Ray cluster has 2 nodes.*SQLite.*set TOWERLINE_ONLINE_STORE to the Redis", with_sqlite)
    assert with_redis.startswith("data set 'shop' does not exist")


def test_it_remembers_after_a_kill_and_serves_until_it_is_told_to_stop(
    settings: Settings, champion: dict[str, str]
) -> None:
    event = {"user_id": "before the kill", "item_id": "item-1", "event_id": "kill-1"}
    with serving(settings) as (process, url):
        assert url == f"http://127.0.0.1:{settings.serve_port}"
        assert _ask(url, "feedback", events=[event])["stored"] == 1
        process.kill()
        process.wait()
    assert "kill-1" in online_store(settings, "shop", HISTORY).appended_events()["event_id"]
    deadline = time.monotonic() + 300
    while _listens(settings.serve_port) and time.monotonic() < deadline:
        time.sleep(0.1)
    with serving(settings) as (process, url):
        answer = _ask(url, "recommend", user_id="before the kill")
        assert answer["known_user"] is True
        assert answer["models"] == champion
        assert _ask(url, "feedback", events=[event])["duplicates"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 130
        assert not _listens(settings.serve_port)


def _ask(url: str, what: str, **question: object) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/{what}", json=question, timeout=300).json()
    return answer
