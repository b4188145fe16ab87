"""Connections to one SQLite file: one per thread, write-ahead logging, one writer at a time, clear errors."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import TowerlineError
from data.disk import clear_disk_errors
from data.stores.sqlite_tables import SHARED

BUSY_SECONDS = 60.0
"""How long a writer waits for another one."""

CACHE_KIB = 64 * 1024


class Connections:
    """The connections of one process. Nothing is opened or made before the first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = threading.local()

    def get(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._thread, "connection", None)
        if connection is None:
            connection = self._thread.connection = self._open()
        return connection

    def close(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = self._thread.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    @contextmanager
    def writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A transaction, durable when the block ends. Whoever comes second waits for the first."""
        connection = self.get()
        with clear_disk_errors(f"{doing} in {self.path}"):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Only one at a time writes a version; the lock ends with its process at the latest."""
        self.get()
        descriptor = os.open(self.path.with_name(f"{self.path.name}.publishing"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open(self) -> sqlite3.Connection:
        with clear_disk_errors(f"opening {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                connection.executescript(SHARED)
            except sqlite3.DatabaseError as error:
                connection.close()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                raise TowerlineError(
                    f"{self.path} is no online store ({error}); delete it and publish again"
                ) from error
        return connection
