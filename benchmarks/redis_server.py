"""A Redis for the benchmarks."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from cluster.errors import TowerlineError


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a Redis of its own, which writes nothing to the disk."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise TowerlineError("redis-server is not installed; `make install-servers` takes it from Debian")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL) as process, redis.Redis(port=port) as client:
        try:
            deadline = time.monotonic() + 10
            while not _answers(client):
                if time.monotonic() > deadline:
                    raise TowerlineError(
                        f"{binary} --port {port} does not answer after 10 s; start it by hand and see why"
                    )
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
