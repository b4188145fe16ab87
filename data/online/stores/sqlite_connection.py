"""Connections to one SQLite file: one per thread, write-ahead logging, one writer at a time, clear errors."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import TowerlineError
from data.disk import clear_disk_errors
from data.online.stores.sqlite_tables import SHARED

BUSY_SECONDS = 60.0
"""How long a writer waits for another one."""

TURN_SECONDS = 0.2
"""How long a step of a publication lets others write first."""

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
        with self._opened("appending") as waiting:
            fcntl.flock(waiting, fcntl.LOCK_SH)
            with self._writing(doing) as connection:
                yield connection

    @contextmanager
    def writing_in_turn(self, doing: str) -> Iterator[sqlite3.Connection]:
        """As `writing`, one of many: whoever waits for `writing` comes first, for `TURN_SECONDS` at most.

        SQLite looks now and then whether it may write: beside a writer that goes on and on it hardly ever finds a gap.
        """
        with self._opened("appending") as waiting:
            deadline = time.monotonic() + TURN_SECONDS
            while not _is_free(waiting) and time.monotonic() < deadline:
                time.sleep(0.002)
        with self._writing(doing) as connection:
            yield connection

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Only one at a time writes a version; the lock ends with its process at the latest."""
        with self._opened("publishing") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _opened(self, suffix: str) -> Iterator[int]:
        """A file beside the store, whose locks end with the block."""
        self.get()
        descriptor = os.open(self.path.with_name(f"{self.path.name}.{suffix}"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _writing(self, doing: str) -> Iterator[sqlite3.Connection]:
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


def _is_free(lock: int) -> bool:
    """Whether nobody shares a lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True
