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

STARTS_WITHIN_S = 10


class RedisServer:
    """A Redis of its own, which can be killed and started again on its port."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """`durable`: every write is on the disk, in `folder`, before it is acknowledged; else nothing is ever written.

        Raises TowerlineError if Redis is not installed.
        """
        binary = shutil.which("redis-server")
        if binary is None:
            raise TowerlineError("redis-server is not installed; `make install-servers` takes it from Debian")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        options += ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        self._command = [binary, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Returns when it answers. Raises TowerlineError if it does not."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self.answers():
            if time.monotonic() > deadline:
                self.kill()
                raise TowerlineError(
                    f"{' '.join(self._command)} does not answer after {STARTS_WITHIN_S} s; start it by hand and see why"
                )
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        """Whether it is there, with all that it holds."""
        with redis.Redis(port=self._port) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


@contextmanager
def redis_server(folder: Path, *, durable: bool = False) -> Iterator[RedisServer]:
    """One that runs; see `RedisServer`."""
    server = RedisServer(folder, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.kill()
