"""The HAProxy that Ray Serve starts: ends with its parent, keeps to loopback, asks another replica where one dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import psutil

from cluster.ray_start import free_ports, ingress_environment
from tests.waiting import wait_until

CONFIG = """
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend prometheus
    bind :{metrics}
listen stats
  bind *:{stats}
frontend http_frontend
    bind 127.0.0.3:{http}
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:])
time.sleep(60)
"""


def test_it_ends_with_a_parent_that_is_killed_and_listens_on_loopback(tmp_path: Path) -> None:
    metrics, stats, http = free_ports(3)
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(metrics=metrics, stats=stats, http=http))
    environment = ingress_environment(tmp_path)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *command], env=os.environ | environment)
    try:
        wait_until(lambda: _listens("127.0.0.3", http))
        (haproxy,) = psutil.Process(parent.pid).children()
        assert str(config) in haproxy.cmdline(), "Ray finds it by its configuration"
        assert "option http-buffer-request\n    timeout http-request 10s" in config.read_text(), "slow clients"
        assert "frontend http_frontend\n    http-request disable-l7-retry if" in config.read_text(), "events"
        listening = {tuple(each.laddr) for each in haproxy.net_connections() if each.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", metrics), ("127.0.0.1", stats), ("127.0.0.3", http)}
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not _listens("127.0.0.3", http))


def test_two_sessions_share_no_port_and_no_folder(tmp_path: Path) -> None:
    one, other = ingress_environment(tmp_path / "one"), ingress_environment(tmp_path / "other")
    shared = {name for name in one if one[name] == other[name]}
    assert shared == {"TOWERLINE_HAPROXY", "RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_SERVE_HAPROXY_RETRY_ON"}


BALANCED = """
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    option redispatch 1
    retry-on {retry_on}
    balance roundrobin
frontend http_frontend
    bind 127.0.0.1:{http}
    default_backend replicas
backend replicas
    http-reuse always
    server one 127.0.0.1:{one}
    server other 127.0.0.1:{other}
"""


class Living(BaseHTTPRequestHandler):
    """Answers, and counts what comes here."""

    protocol_version = "HTTP/1.1"
    requests = 0
    told: ClassVar[dict[str, str]] = {}
    """The headers of the last one."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).requests += 1
        type(self).told = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing of it is of interest."""


class Dying(Living):
    """Takes a request and hangs up."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        self.close_connection = True


def test_a_request_whose_replica_dies_goes_to_another_one_but_events_do_not(tmp_path: Path) -> None:
    with served(Dying) as dying, served(Living) as living, balanced(tmp_path, dying, living) as url:
        with httpx.Client(base_url=url, trust_env=False) as client:
            asked = [client.post("/v1/recommend", json={}).status_code for _ in range(6)]
        assert asked == [200] * 6
        assert Dying.requests > 0
        before = Living.requests
        told = [_status(f"{url}/v1/feedback") for _ in range(6)]
        assert sorted(told) == [200, 200, 200, 502, 502, 502]
        assert Living.requests == before + 3


def test_the_endpoint_itself_watches_and_times_recommendations_and_ray_all_others(tmp_path: Path) -> None:
    by_client = {"X-Request-Disconnect-Disabled": "?0", "X-Request-Timeout-Seconds": "7"}
    with served(Living) as one, served(Living) as other, balanced(tmp_path, one, other) as url:
        for path in ("/v1/recommend", "/v1/recommend:batch"):
            assert _status(f"{url}{path}", by_client) == 200
            assert Living.told["x-request-disconnect-disabled"] == "?1"
            assert Living.told["x-request-timeout-seconds"] == "0"
        for path in ("/v1/feedback", "/v1/chat/completions"):
            assert _status(f"{url}{path}") == 200
            assert not [name for name in Living.told if name.startswith("x-request")]


@contextmanager
def balanced(folder: Path, one: int, other: int) -> Iterator[str]:
    """The address of an HAProxy in front of two ports."""
    (http,) = free_ports(1)
    environment = ingress_environment(folder)
    config = folder / "haproxy.cfg"
    retry_on = environment["RAY_SERVE_HAPROXY_RETRY_ON"]
    config.write_text(BALANCED.format(http=http, retry_on=retry_on, one=one, other=other))
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    haproxy = subprocess.Popen(command, env=os.environ | environment)
    try:
        wait_until(lambda: _listens("127.0.0.1", http))
        yield f"http://127.0.0.1:{http}"
    finally:
        haproxy.terminate()
        haproxy.wait()


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server that hands its requests to `handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _status(url: str, headers: dict[str, str] | None = None) -> int:
    return httpx.post(url, json={}, headers=headers, trust_env=False).status_code


def test_no_port_is_given_twice() -> None:
    ports = [port for _ in range(2000) for port in free_ports(1)]
    assert len(set(ports)) == len(ports)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
