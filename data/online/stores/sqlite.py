"""The online store in one SQLite file: the default, for one machine.

Several processes may have it open at once (WAL): readers never wait, and see a whole publication or the one before it.
An entity's state is a row; whoever appends events updates the rows they touch in the transaction that stores them.
"""

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from data.dataset import Dataset
from data.online.states.update import State
from data.online.stores.appending import numbered, to_contract
from data.online.stores.definitions import Definitions
from data.online.stores.published_ids import which_are_held
from data.online.stores.reads import Reads
from data.online.stores.sqlite_connection import Connections
from data.online.stores.sqlite_publication import SqlitePublication
from data.online.stores.sqlite_version import (
    PARAMETERS,
    VersionTables,
    counters_of,
    log_after,
    new_version,
    put_log,
    rows_in,
    versions,
)
from data.online.stores.version import Version
from data.quality.validation import polars_schema
from data.schema import ATTRIBUTES, EVENT_ID, USER_ID, USERS
from data.views import Entity, FeatureView

USER_TYPES = polars_schema(USERS)


class SqliteStore(Reads):
    """The online store of one data set in a file. Usable from several threads, and picklable: it is only a path."""

    def __init__(self, path: Path, views: Sequence[FeatureView]) -> None:
        """Nothing is opened or made before the first use."""
        self._definitions = Definitions(views)
        self._connections = Connections(path)
        self._thread = _Reading()

    def __reduce__(self) -> tuple[type["SqliteStore"], tuple[Path, tuple[FeatureView, ...]]]:
        return SqliteStore, (self._connections.path, self._definitions.views)

    def publish(self, dataset: Dataset) -> int:
        """See `data.online.store.OnlineStore`; so for all methods."""
        with self._connections.publishing():
            return SqlitePublication(self._connections, self._definitions).publish(dataset)

    def append_events(self, events: pl.DataFrame) -> int:
        rows = to_contract(events)
        with self._connections.writing("storing events") as connection:
            counters = counters_of(connection)
            new, after = numbered(rows, self._known(connection, rows), counters)
            if not new.is_empty():
                put_log(connection, new)
                connection.execute(
                    "INSERT OR REPLACE INTO counters VALUES (0, ?, ?)", [after.next_row, after.last_stamp]
                )
                self._apply(connection, new, counters.next_row)
        return new.height

    def values(self, entity: Entity, ids: Sequence[str]) -> list[bytes | None]:
        """The packed value of each id, None if there is none."""
        if len(ids) == 1:
            rows = self._query("SELECT id, value FROM {table} WHERE id = ?", entity.name, ids)
            return [rows[0][1]] if rows else [None]
        found = dict(self._query("SELECT id, value FROM {table} WHERE id IN ({ids})", entity.name, ids))
        return [found.get(each) for each in ids]

    def states(self, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        rows = self._query("SELECT id, value, memory FROM {table} WHERE id IN ({ids})", entity.name, ids)
        return {entity_id: State(value, memory) for entity_id, value, memory in rows}

    def seen_items(self, user_ids: Sequence[str]) -> list[frozenset[str]]:
        items: dict[str, list[str]] = {user_id: [] for user_id in user_ids}
        for user_id, item_id in self._query(
            "SELECT user_id, item_id FROM {table} WHERE user_id IN ({ids})", "met", list(items)
        ):
            items[user_id].append(item_id)
        return [frozenset(items[user_id]) for user_id in user_ids]

    def user_attributes(self, user_ids: Sequence[str]) -> pl.DataFrame:
        query = "SELECT user_id, tokens FROM {table} WHERE user_id IN ({ids})"
        found = dict(self._query(query, "attributes", list(dict.fromkeys(user_ids))))
        rows = [(user_id, json.loads(found[user_id])) for user_id in dict.fromkeys(user_ids) if user_id in found]
        table = {USER_ID: [row[0] for row in rows], ATTRIBUTES: [row[1] for row in rows]}
        return pl.DataFrame(table, schema=USER_TYPES)

    def appended_events(self) -> pl.DataFrame:
        return log_after(self._connections.get(), 0)

    def published_version(self) -> str | None:
        version = self._mine(self._connections.get())
        return None if version is None else version.data_version or None

    def fingerprints(self) -> Mapping[str, str]:
        newest = next((each for each in versions(self._connections.get()) if each.published), None)
        return {} if newest is None else json.loads(newest.fingerprints)

    def close(self) -> None:
        self._connections.close()
        self._thread.number = None

    def _query(self, query: str, table: str, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of the version that is read. Its tables are gone as soon as another one has taken its place."""
        if len(ids) > PARAMETERS:
            return self._query(query, table, ids[:PARAMETERS]) + self._query(query, table, ids[PARAMETERS:])
        connection = self._connections.get()
        while ids and self._reads(connection):
            try:
                return connection.execute(self._thread.statement(query, table, len(ids)), ids).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                self._thread.number = None
        return []

    def _reads(self, connection: sqlite3.Connection) -> bool:
        """Whether there is a version to read. Raises TowerlineError if there are only those of other definitions."""
        if self._thread.number is None:
            version = self._mine(connection)
            if version is None:
                published = self.fingerprints()
                if published:
                    self._definitions.require(published, str(self._connections.path))
                return False
            self._thread.use(version.number)
        return True

    def _mine(self, connection: sqlite3.Connection) -> Version | None:
        """The version that was published last for these definitions."""
        mine = (each for each in versions(connection) if each.definitions == self._definitions.fingerprint)
        return next((each for each in mine if each.published), None)

    def _known(self, connection: sqlite3.Connection, events: pl.DataFrame) -> set[str]:
        """Which of these events were appended before or are published."""
        ids = events.get_column(EVENT_ID).to_list()
        known = {event_id for (event_id,) in rows_in(connection, "SELECT event_id FROM log WHERE event_id", ids)}
        newest = next((each for each in versions(connection) if each.published and each.data_version), None)
        if newest is None:
            return known
        tables = VersionTables(connection, self._definitions, newest.number)
        return known | set(events.filter(which_are_held(newest.sharding, events, tables.shards)).get_column(EVENT_ID))

    def _apply(self, connection: sqlite3.Connection, new: pl.DataFrame, first_row: int) -> None:
        """Make what was appended part of the states, also what others appended without being able to do so."""
        version = self._mine(connection)
        if version is None:
            if any(each.published for each in versions(connection)):
                return
            version = new_version(connection, self._definitions, "", 1, 1)
            VersionTables(connection, self._definitions, version.number).put_on_display("", 0)
        tables = VersionTables(connection, self._definitions, version.number)
        is_complete = version.applied >= first_row - 1
        tables.apply(new if is_complete else log_after(connection, version.applied))
        tables.put_applied(first_row + new.height - 1)


class _Reading(threading.local):
    """What a thread reads, and its statements."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._statements: dict[tuple[str, str, int], str] = {}

    def use(self, number: int) -> None:
        """Read this version."""
        self.number = number
        self._statements.clear()

    def statement(self, query: str, table: str, count: int) -> str:
        """The statement for so many ids."""
        key = (query, table, count)
        found = self._statements.get(key)
        if found is None:
            places = ", ".join("?" * count)
            found = self._statements[key] = query.format(table=f"{table}_{self.number}", ids=places)
        return found
