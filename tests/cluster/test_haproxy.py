"""The HAProxy that Ray Serve starts: it ends with its parent, whatever happens, and keeps to loopback."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

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
        listening = {tuple(each.laddr) for each in haproxy.net_connections() if each.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", metrics), ("127.0.0.1", stats), ("127.0.0.3", http)}
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not _listens("127.0.0.3", http))


def test_two_sessions_share_no_port_and_no_folder(tmp_path: Path) -> None:
    one, other = ingress_environment(tmp_path / "one"), ingress_environment(tmp_path / "other")
    shared = {name for name in one if one[name] == other[name]}
    assert shared == {"TOWERLINE_HAPROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"}


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
