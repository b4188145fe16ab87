"""The serving benchmark's load, goals and report; its sides are tested in tests/serve/test_other_ways.py."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.serving_load import Load, load, parse, write_bodies
from benchmarks.serving_report import GOALS, goal_figures, print_figures, write_picture
from benchmarks.serving_sides import BENTO_PACKAGES, sides
from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from serve.config import read_config

OUTPUT = """Running 6s test @ http://127.0.0.1:8000/v1/recommend
  1 threads and 16 connections
Requests/sec:   1200.33

SUMMARY {"requests": 7202, "microseconds": 6000100, "p50_us": 13100, "p99_us": 40250, "refused": 2, "broken": 1}
"""


def test_what_wrk_says_is_read() -> None:
    assert parse(OUTPUT, "") == Load(requests=7202, seconds=6.0001, p50_ms=13.1, p99_ms=40.25, failures=3)
    assert parse(OUTPUT, "").rps == pytest.approx(7199 / 6.0001)


def test_a_wrk_that_fails_says_why() -> None:
    with pytest.raises(TowerlineError, match="unable to connect"):
        parse("", "wrk failed: unable to connect")


def test_the_requests_are_the_same_every_time(tmp_path: Path) -> None:
    users = ['say "hi"', "千と千尋", "3"]
    one = write_bodies(users, tmp_path / "one").read_text()
    assert write_bodies(users[::-1], tmp_path / "other").read_text() == one
    assert len(one.splitlines()) == 3


def test_our_sides_are_configurations_that_can_be_served(tmp_path: Path) -> None:
    sides("shop", tmp_path)
    remote = read_config("shop", tmp_path / "remote.toml")
    assert remote.graph.remote() == ("retrieval", "ranking", "explain")
    assert read_config("shop", tmp_path / "in_process_r2.toml").gateway_replicas.min == 2


def test_bentoml_runs_beside_our_packages_as_we_have_them() -> None:
    ours, theirs = (_pinned(file) for file in (ROOT / "constraints.txt", BENTO_PACKAGES))
    assert "bentoml" in theirs
    both = {name for name in theirs & ours if not name.startswith("opentelemetry-")}
    assert both <= {"certifi"}, "nothing that a stage computes with"


def _pinned(file: Path) -> set[str]:
    """Names, as PyPI compares them."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}


def test_goals_are_ratios_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"start_s/in_process": 20.0}
    for side, rps in {"in_process": 300.0, "fastapi": 200.0, "fastapi_tuned": 500.0}.items():
        for place in ("c1", "c16"):
            metrics = {"rps": rps, "p50_ms": 1e3 / rps, "p99_ms": 1.0, "cpu_ms_per_request": 1.0, "failures": 0.0}
            figures |= {f"{metric}/{side}/{place}": value for metric, value in metrics.items()}
    ratios = goal_figures(figures)
    assert ratios == {
        "rps_ratio/in_process/fastapi/c16": pytest.approx(1.5),
        "rps_ratio/in_process/fastapi_tuned/c16": pytest.approx(0.6),
        "p50_ms_ratio/in_process/fastapi/c1": pytest.approx(2 / 3),
    }
    assert [goal.is_met(ratios[goal.name]) for goal in GOALS if goal.name in ratios] == [True, False, True]
    print_figures(figures)
    said = capsys.readouterr().out
    assert said.count("not met") == 1
    assert write_picture(figures, tmp_path / "bench_serving.png").stat().st_size > 10_000


class Every4thIsRefused(BaseHTTPRequestHandler):
    """A server that says what was sent to it."""

    protocol_version = "HTTP/1.1"
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(429 if len(self.bodies) % 4 == 0 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Every4thIsRefused.bodies = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Every4thIsRefused) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.cluster
def test_wrk_asks_for_one_user_after_the_other_and_counts_what_is_refused(server: str, tmp_path: Path) -> None:
    bodies = write_bodies(["a", "b", "c"], tmp_path / "bodies")
    found = load(server, bodies, connections=1, seconds=1)
    sent = [body.decode() for body in Every4thIsRefused.bodies]
    assert sorted(sent[:3]) == sorted(bodies.read_text().splitlines())
    assert sent[3:9] == sent[:3] * 2
    assert found.failures == pytest.approx(found.requests / 4, abs=2)
    assert found.rps == pytest.approx(0.75 * found.requests / found.seconds, rel=0.1)
    assert 0 < found.p50_ms <= found.p99_ms
