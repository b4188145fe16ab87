"""One version of the states in SQLite: its row in `versions` and its tables."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from data.online.entity_state import THE_ONLY_ID
from data.online.materialization import BucketStates, NotedBucket
from data.online.states.update import State
from data.online.stores.appending import Counters
from data.online.stores.definitions import Definitions
from data.online.stores.sqlite_tables import OF_VERSION
from data.online.stores.version import Version
from data.schema import EVENTS, ITEM_ID, SOURCE_ROW, USER_ID
from data.views import ENTITIES, EVENT_TYPES, EVERYTHING, USER, Entity

PARAMETERS = 30_000
"""Values in one statement at most."""

DROPPED = "dropped_"
_TIMES = ("event_time", "ingest_time")
_LOGGED = f"SELECT {', '.join(EVENTS.names)} FROM log"


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
    """Whoever reads it looks for its successor. `dropped_tables` names what is left of it."""
    for name in OF_VERSION:
        connection.execute(f"ALTER TABLE {name}_{number} RENAME TO {DROPPED}{name}_{number}")
    connection.execute("DELETE FROM versions WHERE number = ?", [number])


def dropped_tables(connection: sqlite3.Connection) -> list[str]:
    """Tables of versions that are gone. To delete one takes long if it is large, and whoever writes waits."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [name for (name,) in names if name.startswith(DROPPED)]


class VersionTables:
    """The tables of one version, inside of a transaction."""

    def __init__(self, connection: sqlite3.Connection, definitions: Definitions, number: int) -> None:
        self._connection = connection
        self._definitions = definitions
        self._number = number

    def apply(self, events: pl.DataFrame) -> None:
        """Make new events part of the states."""
        self.put_all(self.updated(events), events)

    def updated(self, events: pl.DataFrame) -> dict[Entity, dict[str, State]]:
        """The states that new events lead to."""
        found: dict[Entity, dict[str, State]] = {}
        for entity in ENTITIES:
            states = self._definitions.states[entity]
            ids = states.ids_of(events)
            old = self.states(entity, ids)
            found[entity] = states.apply({each: old.get(each) for each in ids}, events)
        return found

    def put_all(self, states: Mapping[Entity, Mapping[str, State]], events: pl.DataFrame) -> None:
        """Replace states by those with some events in them."""
        for entity, changed in states.items():
            self.put(entity, changed)
        self.add_met(events)
        self.count(events.height)

    def note(self, bucket: BucketStates) -> None:
        """A bucket of a data set is there, whose states and pairs of users and items are."""
        name, number = bucket.task
        if bucket.of_users is not None:
            self.add_everything(bucket.of_users.everything)
            self.put_noted(bucket.of_users)
            self.count(bucket.events)
        else:
            self._put_digest(name, number, "")

    def add_everything(self, part: State) -> None:
        """Events of which the state of EVERYTHING is given."""
        parts = [*self.states(EVERYTHING, [THE_ONLY_ID]).values(), part]
        merged = self._definitions.states[EVERYTHING].merge({THE_ONLY_ID: parts}, pl.DataFrame(schema=EVENT_TYPES))
        self.put(EVERYTHING, merged)

    def count(self, events: int) -> None:
        """So many more events are in the states."""
        self._update("events = events + ?", events)

    def written(self) -> dict[tuple[str, int], str]:
        """The buckets that are there, with their digests."""
        rows = self._connection.execute(f"SELECT entity, bucket, digest FROM {self._table('buckets')}")
        return {(name, bucket): digest for name, bucket, digest in rows.fetchall()}

    def put_noted(self, bucket: NotedBucket) -> None:
        """A bucket of users is there with these events; shards of ids that are not given stay as they are."""
        self._connection.executemany(f"INSERT OR REPLACE INTO {self._table('ids')} VALUES (?, ?)", bucket.ids.items())
        self._put_digest(USER.name, bucket.bucket, bucket.digest)

    def shards(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Some shards of the ids."""
        query = f"SELECT shard, hashes FROM {self._table('ids')} WHERE shard"
        return dict(rows_in(self._connection, query, numbers))

    def attributes(self) -> dict[str, str]:
        """The attributes (JSON) of all users."""
        return dict(self._connection.execute(f"SELECT user_id, tokens FROM {self._table('attributes')}").fetchall())

    def put_attributes(self, tokens: Mapping[str, str]) -> None:
        """Set the attributes (JSON) of users."""
        query = f"INSERT OR REPLACE INTO {self._table('attributes')} VALUES (?, ?)"
        self._connection.executemany(query, tokens.items())

    def drop_attributes(self, user_ids: Iterable[str]) -> None:
        """These users have none."""
        query = f"DELETE FROM {self._table('attributes')} WHERE user_id = ?"
        self._connection.executemany(query, ([user_id] for user_id in user_ids))

    def applied(self) -> int:
        """The source row up to which appended events are in the states."""
        query = "SELECT applied FROM versions WHERE number = ?"
        applied: int = self._connection.execute(query, [self._number]).fetchone()[0]
        return applied

    def note_brought(self, events: pl.DataFrame) -> None:
        """Appended events that the data set brings, to be forgotten when the version is read."""
        rows = ([row] for row in events.get_column(SOURCE_ROW).to_list())
        self._connection.executemany(f"INSERT OR IGNORE INTO {self._table('brought')} VALUES (?)", rows)

    def forget_brought(self, most: int) -> int:
        """Forget some of them; how many there were."""
        some = f"(SELECT source_row FROM {self._table('brought')} ORDER BY source_row LIMIT ?)"
        self._connection.execute(f"DELETE FROM log WHERE source_row IN {some}", [most])
        query = f"DELETE FROM {self._table('brought')} WHERE source_row IN {some}"
        return self._connection.execute(query, [most]).rowcount

    def put_on_display(self, data_version: str, applied: int) -> None:
        """Make this the version that is read, with the appended events up to a source row in it."""
        self._update("data_version = ?, applied = ?", data_version, applied)
        self._update("published = (SELECT max(published) FROM versions) + 1")

    def put_applied(self, applied: int) -> None:
        """Note that the appended events up to a source row are in the states."""
        self._update("applied = ?", applied)

    def _update(self, assignment: str, *values: object) -> None:
        self._connection.execute(f"UPDATE versions SET {assignment} WHERE number = ?", [*values, self._number])

    def states(self, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        """The states of those that have one."""
        query = f"SELECT id, value, memory FROM {self._table(entity.name)} WHERE id"
        rows = rows_in(self._connection, query, ids)
        return {each: State(value, memory) for each, value, memory in rows}

    def put(self, entity: Entity, states: Mapping[str, State]) -> None:
        """Replace states."""
        rows = ((each, state.value, state.memory) for each, state in states.items())
        self._connection.executemany(f"INSERT OR REPLACE INTO {self._table(entity.name)} VALUES (?, ?, ?)", rows)

    def add_met(self, pairs: pl.DataFrame) -> None:
        """Note which users met which items."""
        rows = pairs.select(USER_ID, ITEM_ID).unique().iter_rows()
        self._connection.executemany(f"INSERT OR IGNORE INTO {self._table('met')} VALUES (?, ?)", rows)

    def _put_digest(self, entity: str, bucket: int, digest: str) -> None:
        row = [entity, bucket, digest]
        self._connection.execute(f"INSERT OR REPLACE INTO {self._table('buckets')} VALUES (?, ?, ?)", row)

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


def log_after(connection: sqlite3.Connection, source_row: int, most: int = -1) -> pl.DataFrame:
    """The appended events after a source row, in order; only the first if there are more than `most`."""
    query = f"{_LOGGED} WHERE source_row > ? ORDER BY source_row LIMIT ?"
    return _logged(connection.execute(query, [source_row, most]).fetchall())


def log_of(connection: sqlite3.Connection, event_ids: Sequence[str]) -> pl.DataFrame:
    """Those of some events that were appended."""
    return _logged(list(rows_in(connection, f"{_LOGGED} WHERE event_id", event_ids)))


def forget(connection: sqlite3.Connection, events: pl.DataFrame) -> None:
    """The data set that is read has these appended events now."""
    rows = ([row] for row in events.get_column(SOURCE_ROW).to_list())
    connection.executemany("DELETE FROM log WHERE source_row = ?", rows)


def _logged(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ([] for _ in EVENT_TYPES)
    stored = {name: pl.Int64() if name in _TIMES else kind for name, kind in EVENT_TYPES.items()}
    series = [pl.Series(name, values, dtype=kind) for (name, kind), values in zip(stored.items(), columns, strict=True)]
    return pl.DataFrame(series).cast(EVENT_TYPES)


def counters_of(connection: sqlite3.Connection) -> Counters:
    """Where appended events go on."""
    row = connection.execute("SELECT next_row, last_stamp FROM counters").fetchone()
    return Counters() if row is None else Counters(*row)
