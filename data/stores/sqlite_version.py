"""One version of the states in SQLite: its row in `versions` and its tables."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from data.entity_state import THE_ONLY_ID
from data.materialization import BucketStates
from data.schema import EVENTS, ITEM_ID, USER_ID
from data.states.update import State
from data.stores.appending import Counters
from data.stores.definitions import Definitions
from data.stores.sqlite_tables import OF_VERSION
from data.stores.version import Version
from data.views import ENTITIES, EVENT_TYPES, EVERYTHING, Entity

PARAMETERS = 30_000
"""Values in one statement at most."""

EVENTS_AT_ONCE = 50_000
_TIMES = ("event_time", "ingest_time")


def versions(connection: sqlite3.Connection) -> list[Version]:
    """All versions, the newest first, those being written last."""
    rows = connection.execute("SELECT * FROM versions ORDER BY published DESC, number DESC")
    return [Version(*row) for row in rows.fetchall()]


def new_version(
    connection: sqlite3.Connection, definitions: Definitions, data_version: str, buckets: int, shards: int
) -> Version:
    """An empty version that nobody reads yet."""
    fingerprints = json.dumps(definitions.fingerprints)
    row = [definitions.fingerprint, fingerprints, data_version, buckets, shards]
    columns = "definitions, fingerprints, data_version, buckets, shards, events, applied"
    number = connection.execute(f"INSERT INTO versions ({columns}) VALUES (?, ?, ?, ?, ?, 0, 0)", row).lastrowid
    for name, table in OF_VERSION.items():
        connection.execute(f"CREATE TABLE {name}_{number} {table}")
    return next(each for each in versions(connection) if each.number == number)


def drop_version(connection: sqlite3.Connection, number: int) -> None:
    """Whoever reads it looks for its successor."""
    for name in OF_VERSION:
        connection.execute(f"DROP TABLE {name}_{number}")
    connection.execute("DELETE FROM versions WHERE number = ?", [number])


class VersionTables:
    """The tables of one version, inside of a transaction."""

    def __init__(self, connection: sqlite3.Connection, definitions: Definitions, number: int) -> None:
        self._connection = connection
        self._definitions = definitions
        self._number = number

    def apply(self, events: pl.DataFrame) -> None:
        """Make new events part of the states."""
        for part in events.iter_slices(EVENTS_AT_ONCE):
            for entity in ENTITIES:
                states = self._definitions.states[entity]
                ids = states.ids_of(part)
                old = self._states(entity, ids)
                self._put(entity, states.apply({each: old.get(each) for each in ids}, part))
            self._add_met(part.select(USER_ID, ITEM_ID).unique().iter_rows())
        self._update("events = events + ?", events.height)

    def write(self, bucket: BucketStates) -> None:
        """Store the states of a bucket of a data set."""
        name, number = bucket.task
        entity = next(each for each in ENTITIES if each.name == name)
        self._put(entity, bucket.states)
        digest = ""
        if bucket.of_users is not None:
            everything = self._definitions.states[EVERYTHING]
            parts = [*self._states(EVERYTHING, [THE_ONLY_ID]).values(), bucket.of_users.everything]
            self._put(EVERYTHING, everything.merge({THE_ONLY_ID: parts}, pl.DataFrame(schema=EVENT_TYPES)))
            self._add_met(bucket.of_users.met.iter_rows())
            self.put_ids(bucket.of_users.ids)
            digest = bucket.of_users.digest
            self._update("events = events + ?", bucket.events)
        self.put_digest(name, number, digest)

    def written(self) -> dict[tuple[str, int], str]:
        """The buckets that are there, with their digests."""
        rows = self._connection.execute(f"SELECT entity, bucket, digest FROM {self._table('buckets')}")
        return {(name, bucket): digest for name, bucket, digest in rows.fetchall()}

    def put_digest(self, entity: str, bucket: int, digest: str) -> None:
        """Note that a bucket is there."""
        row = [entity, bucket, digest]
        self._connection.execute(f"INSERT OR REPLACE INTO {self._table('buckets')} VALUES (?, ?, ?)", row)

    def shards(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Some shards of the ids."""
        query = f"SELECT shard, hashes FROM {self._table('ids')} WHERE shard"
        return dict(rows_in(self._connection, query, numbers))

    def put_ids(self, shards: Mapping[int, bytes]) -> None:
        """Replace some shards of the ids."""
        self._connection.executemany(f"INSERT OR REPLACE INTO {self._table('ids')} VALUES (?, ?)", shards.items())

    def put_attributes(self, users: pl.DataFrame) -> None:
        """Replace the attributes of all users."""
        self._connection.execute(f"DELETE FROM {self._table('attributes')}")
        rows = ((user_id, json.dumps(tokens)) for user_id, tokens in users.iter_rows())
        self._connection.executemany(f"INSERT INTO {self._table('attributes')} VALUES (?, ?)", rows)

    def put_on_display(self, data_version: str, applied: int) -> None:
        """Make this the version that is read, with the appended events up to a source row in it."""
        self._update("data_version = ?, applied = ?", data_version, applied)
        self._update("published = (SELECT max(published) FROM versions) + 1")

    def put_applied(self, applied: int) -> None:
        """Note that the appended events up to a source row are in the states."""
        self._update("applied = ?", applied)

    def _update(self, assignment: str, *values: object) -> None:
        self._connection.execute(f"UPDATE versions SET {assignment} WHERE number = ?", [*values, self._number])

    def _states(self, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        query = f"SELECT id, value, memory FROM {self._table(entity.name)} WHERE id"
        rows = rows_in(self._connection, query, ids)
        return {each: State(value, memory) for each, value, memory in rows}

    def _put(self, entity: Entity, states: Mapping[str, State]) -> None:
        rows = ((each, state.value, state.memory) for each, state in states.items())
        self._connection.executemany(f"INSERT OR REPLACE INTO {self._table(entity.name)} VALUES (?, ?, ?)", rows)

    def _add_met(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._connection.executemany(f"INSERT OR IGNORE INTO {self._table('met')} VALUES (?, ?)", pairs)

    def _table(self, name: str) -> str:
        return f"{name}_{self._number}"


def rows_in(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> Iterator[tuple[Any, ...]]:
    """Rows of a query that ends in a column, where it has one of these values. Bound one by one: NUL included."""
    for start in range(0, len(values), PARAMETERS):
        asked = values[start : start + PARAMETERS]
        yield from connection.execute(f"{query} IN ({', '.join('?' * len(asked))})", asked).fetchall()


def put_log(connection: sqlite3.Connection, events: pl.DataFrame) -> None:
    """Append events to the log."""
    rows = events.with_columns(pl.col(_TIMES).dt.epoch("us")).select("source_row", *EVENTS.names[:-1]).iter_rows()
    connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def log_after(connection: sqlite3.Connection, source_row: int) -> pl.DataFrame:
    """The appended events after a source row, in order."""
    query = f"SELECT {', '.join(EVENTS.names)} FROM log WHERE source_row > ? ORDER BY source_row"
    rows = connection.execute(query, [source_row]).fetchall()
    columns = zip(*rows, strict=True) if rows else ([] for _ in EVENT_TYPES)
    stored = {name: pl.Int64() if name in _TIMES else kind for name, kind in EVENT_TYPES.items()}
    series = [pl.Series(name, values, dtype=kind) for (name, kind), values in zip(stored.items(), columns, strict=True)]
    return pl.DataFrame(series).cast(EVENT_TYPES)


def counters_of(connection: sqlite3.Connection) -> Counters:
    """Where appended events go on."""
    row = connection.execute("SELECT next_row, last_stamp FROM counters").fetchone()
    return Counters() if row is None else Counters(*row)
