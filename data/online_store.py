"""What serving reads and feedback writes: events by user, attributes and item totals in one SQLite file.

Several processes of one machine may have it open at once (WAL): readers never wait, and see a whole publication or the
one before it. Nothing in here goes stale by itself: windows and "time since" are finished by `data.features` at the
moment of reading.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.disk import clear_disk_errors
from data.schema import (
    ATTRIBUTES,
    EVENT_TIME,
    EVENTS,
    INGEST_TIME,
    ITEM_EVENT_COUNT,
    ITEM_ID,
    ITEM_LAST_TIME,
    ITEM_SUM_VALUE,
    SOURCE_ROW,
    USER_ID,
    USERS,
)
from data.splits import TOTAL_ORDER
from data.validation import polars_schema

FIRST_APPENDED_ROW = 2**40
"""`source_row` of the first appended event: at the same time, what was appended comes after what was published."""

BUSY_SECONDS = 60.0
"""How long a writer waits for another one, which may be publishing a whole data set."""

ROWS_PER_INSERT = 50_000
USERS_PER_QUERY = 1_000

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    event_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL,
    value REAL NOT NULL, event_time INTEGER NOT NULL, ingest_time INTEGER NOT NULL, decision_id TEXT,
    source_row INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id);
CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, attributes TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, item_event_count INTEGER NOT NULL, item_sum_value REAL NOT NULL,
    item_last_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS published (only INTEGER PRIMARY KEY CHECK (only = 0), name TEXT, data_version TEXT);
"""

_INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
_ADD_TO_ITEM = """
INSERT INTO items VALUES (?, 1, ?, ?) ON CONFLICT (item_id) DO UPDATE SET item_event_count = item_event_count + 1,
    item_sum_value = item_sum_value + excluded.item_sum_value,
    item_last_time = max(item_last_time, excluded.item_last_time)
"""
_RECOUNT_ITEMS = "INSERT INTO items SELECT item_id, count(*), sum(value), max(event_time) FROM events GROUP BY item_id"

EVENT_TYPES = polars_schema(EVENTS)
USER_TYPES = polars_schema(USERS)
ITEM_TYPES = pl.Schema(
    {
        ITEM_ID: pl.String(),
        ITEM_EVENT_COUNT: pl.Int64(),
        ITEM_SUM_VALUE: pl.Float64(),
        ITEM_LAST_TIME: pl.Datetime("us", "UTC"),
    }
)


class OnlineStore:
    """The online store of one data set. Usable from several threads, and picklable: it is only a path."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened or made before the first use."""
        self._path = path
        self._thread = threading.local()

    def __reduce__(self) -> tuple[type["OnlineStore"], tuple[Path]]:
        return OnlineStore, (self._path,)

    def publish(self, dataset: Dataset) -> int:
        """Replace what was published before by `dataset`; returns the number of events now in the store.

        Appended events stay, unless the data set brings them itself (by event_id). All or nothing, and readers go on
        meanwhile. Does nothing if this very version is what is published.
        """
        if self.published_version() == dataset.manifest.data_version:
            return self._count()
        events, users = dataset.events().select(EVENTS.names), dataset.users()
        with self._writing("publishing") as connection:
            connection.execute("DELETE FROM events WHERE source_row < ?", [FIRST_APPENDED_ROW])
            ids = ((event_id,) for event_id in events.get_column("event_id"))
            connection.executemany("DELETE FROM events WHERE event_id = ?", ids)
            for rows in events.iter_slices(ROWS_PER_INSERT):
                connection.executemany(_INSERT_EVENT, _numbers_for_times(rows).iter_rows())
            connection.execute("DELETE FROM users")
            attributes = ((user_id, json.dumps(tokens)) for user_id, tokens in users.iter_rows())
            connection.executemany("INSERT INTO users VALUES (?, ?)", attributes)
            connection.execute("DELETE FROM items")
            connection.execute(_RECOUNT_ITEMS)
            version = [dataset.name, dataset.manifest.data_version]
            connection.execute("INSERT OR REPLACE INTO published VALUES (0, ?, ?)", version)
        self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self._count()

    def published_version(self) -> str | None:
        """`data_version` of what is published, None before the first time."""
        row = self._connection().execute("SELECT data_version FROM published").fetchone()
        return None if row is None else str(row[0])

    def append_events(self, events: pl.DataFrame) -> int:
        """Store the events that are new by event_id; returns how many were. They are on the disk when this returns.

        `events` has the columns of the contract; `source_row` is not needed: the store gives its own, in order.
        """
        columns = [name for name in EVENTS.names if name != SOURCE_ROW]
        rows = _numbers_for_times(events.select(columns)).rows()
        new = 0
        with self._writing("storing events") as connection:
            (last,) = connection.execute("SELECT coalesce(max(source_row), 0) FROM events").fetchone()
            row_number = max(last + 1, FIRST_APPENDED_ROW)
            for row in rows:
                if connection.execute(_INSERT_EVENT, (*row, row_number + new)).rowcount == 1:
                    connection.execute(_ADD_TO_ITEM, (row[2], row[4], row[5]))
                    new += 1
        return new

    def user_events(self, user_ids: Sequence[str]) -> pl.DataFrame:
        """All events of these users, in the columns and the total order of the contract."""
        rows = self._of_users(f"SELECT {', '.join(EVENTS.names)} FROM events", user_ids)
        return _frame(rows, EVENT_TYPES).sort(TOTAL_ORDER)

    def user_attributes(self, user_ids: Sequence[str]) -> pl.DataFrame:
        """user_id and attributes of those of these users who have a row."""
        rows = self._of_users("SELECT user_id, attributes FROM users", user_ids)
        table = {USER_ID: [row[0] for row in rows], ATTRIBUTES: [json.loads(row[1]) for row in rows]}
        return pl.DataFrame(table, schema=USER_TYPES)

    def item_aggregates(self) -> pl.DataFrame:
        """item_id, item_event_count, item_sum_value and item_last_time of every item with an event.

        Read again only if anything was written since this thread's last call.
        """
        connection = self._connection()
        (others,) = connection.execute("PRAGMA data_version").fetchone()
        state = (others, connection.total_changes)
        if getattr(self._thread, "items_state", None) != state:
            rows = connection.execute(f"SELECT {', '.join(ITEM_TYPES)} FROM items").fetchall()
            self._thread.items = _frame(rows, ITEM_TYPES)
            self._thread.items_state = state
        items: pl.DataFrame = self._thread.items
        return items

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        connection: sqlite3.Connection | None = self._thread.__dict__.pop("connection", None)
        self._thread.__dict__.clear()
        if connection is not None:
            connection.close()

    def _count(self) -> int:
        return int(self._connection().execute("SELECT count(*) FROM events").fetchone()[0])

    def _of_users(self, query: str, user_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of a query without a WHERE, of these users. Ids are bound one by one: any Unicode, NUL included."""
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(user_ids), USERS_PER_QUERY):
            asked = list(user_ids[start : start + USERS_PER_QUERY])
            places = ", ".join("?" * len(asked))
            rows += self._connection().execute(f"{query} WHERE user_id IN ({places})", asked).fetchall()
        return rows

    @contextmanager
    def _writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A transaction, durable when the block ends. Whoever comes second waits for the first."""
        connection = self._connection()
        with clear_disk_errors(f"{doing} in {self._path}"):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._thread, "connection", None)
        if connection is None:
            connection = self._thread.connection = self._open()
        return connection

    def _open(self) -> sqlite3.Connection:
        with clear_disk_errors(f"opening {self._path}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(_TABLES)
            except sqlite3.DatabaseError as error:
                connection.close()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                raise TowerlineError(
                    f"{self._path} is no online store ({error}); delete it and publish again"
                ) from error
        return connection


def _numbers_for_times(events: pl.DataFrame) -> pl.DataFrame:
    """Rows as SQLite holds them: times in µs since the epoch."""
    return events.with_columns(pl.col(EVENT_TIME, INGEST_TIME).dt.epoch("us"))


def _frame(rows: list[tuple[Any, ...]], schema: pl.Schema) -> pl.DataFrame:
    """What SQLite gave, with times instead of numbers."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    series = []
    for (name, kind), values in zip(schema.items(), columns, strict=True):
        stored = pl.Int64() if isinstance(kind, pl.Datetime) else kind
        series.append(pl.Series(name, values, dtype=stored).cast(kind))
    return pl.DataFrame(series)
