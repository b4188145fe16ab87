"""A consumer of a stream that keeps events in SQLite, in a thread or in a process of its own that can be made to die.

`python -m tests.data.consumer ADDRESS FOLDER [--die-after ITEM] [--die-at ITEM]` ends when the stream is empty.
"""

import argparse
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from cluster.provenance import ROOT
from data.online.stream_progress import StreamProgress
from data.online.stream_quarantine import StreamQuarantine
from data.online.streaming import Follower
from data.quality.validation import EventRules
from data.sources.stream import open_stream

logger = logging.getLogger(__name__)


def event(number: int, **changes: object) -> bytes:
    """A good event of item `number`."""
    content = {"user_id": f"u{number % 7}", "item_id": str(number), "event_time": "2024-01-01T00:00:00Z"}
    return json.dumps(content | changes).encode()


class Store:
    """Events by id in a file, durable; all of a batch or none."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "events.db"
        self.batches = 0
        with closing(sqlite3.connect(self.file)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS events (event_id TEXT PRIMARY KEY, item_id TEXT)")

    def append_events(self, events: pl.DataFrame) -> int:
        """How many were new. It fails for an item "poison"."""
        self.batches += 1
        if "poison" in events["item_id"]:
            raise OverflowError("too much")
        with closing(sqlite3.connect(self.file, timeout=30)) as connection, connection:
            before = connection.total_changes
            rows = events.select("event_id", "item_id").iter_rows()
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?)", rows)
            return connection.total_changes - before

    def items(self) -> list[str]:
        """Sorted as numbers; one twice if it is there under two ids."""
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            return sorted((item for (item,) in connection.execute("SELECT item_id FROM events")), key=int)


def follower(address: str, folder: Path, handler: Callable[[pl.DataFrame], int] | None = None) -> Follower:
    """A follower of the stream into `folder`."""
    source = open_stream(address, EventRules(datetime.now(UTC)))
    return Follower(source, handler or Store(folder).append_events, StreamQuarantine(folder / "quarantine"))


def consume(address: str, folder: Path) -> StreamProgress:
    """Handle all there is."""
    return follower(address, folder).run(until_empty=True)


@contextmanager
def following(address: str, folder: Path) -> Iterator[Follower]:
    """A follower in a thread, stopped at the end."""
    running = follower(address, folder)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            running.run()
        except BaseException as error:
            logger.exception("the follower failed")
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        thread.join(300)
    assert not thread.is_alive()
    assert failed == []


def start_consumer(address: str, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """A consumer in a process of its own."""
    command = [sys.executable, "-m", "tests.data.consumer", address, str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT)


def quarantined(folder: Path) -> list[dict[str, object]]:
    """What is in quarantine."""
    files = sorted((folder / "quarantine").rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def main(arguments: list[str]) -> None:
    """Handle all there is; die by SIGKILL after or at an item."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-after", help="when the batch with this item is stored and not yet committed")
    parser.add_argument("--die-at", help="whenever a batch with this item is to be stored")
    asked = parser.parse_args(arguments)
    store = Store(asked.folder)

    def handle(events: pl.DataFrame) -> int:
        if asked.die_at in events["item_id"].to_list():
            os.kill(os.getpid(), signal.SIGKILL)
        new = store.append_events(events)
        if asked.die_after in events["item_id"].to_list():
            os.kill(os.getpid(), signal.SIGKILL)
        return new

    follower(asked.address, asked.folder, handle).run(until_empty=True)


if __name__ == "__main__":
    main(sys.argv[1:])
