"""Publishing a data set to SQLite: beside what is read, bucket by bucket, then one switch."""

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from data.dataset import Dataset
from data.online.materialization import BucketStates, additions, bucket_states, sharding_of, tasks_of
from data.online.stores.definitions import Definitions
from data.online.stores.published_ids import which_are_held
from data.online.stores.sqlite_additions import prepared, write_additions
from data.online.stores.sqlite_connection import Connections
from data.online.stores.sqlite_version import (
    VersionTables,
    counters_of,
    drop_version,
    dropped_tables,
    log_after,
    new_version,
    versions,
)
from data.online.stores.version import Version
from data.schema import SOURCE_ROW
from data.views import ENTITIES

Value = TypeVar("Value")

MOST_ADDED = 50_000
"""More additions than that are not written in one transaction, for which appends wait: everything is published."""

STATES_AT_ONCE = 5_000
ROWS_AT_ONCE = 50_000
LOGGED_AT_ONCE = 5_000
LEFT_AT_MOST = 500
"""Appended events that are applied while others wait."""

PUBLISHING = "publishing"


@dataclass(frozen=True)
class SqlitePublication:
    """One publication; the caller holds the lock of `Connections.publishing`."""

    connections: Connections
    definitions: Definitions

    def publish(self, dataset: Dataset) -> int:
        """The number of events behind the states, appended ones included."""
        wanted = dataset.manifest.data_version
        mine = self._mine()
        is_published = mine is not None and (mine.data_version == wanted or self._add(dataset, mine))
        if not is_published:
            self._publish_all(dataset)
        mine = self._mine()
        assert mine is not None
        self._tidy(mine)
        return mine.events

    def _mine(self) -> Version | None:
        return next((each for each in self._versions() if each.published and self._is_mine(each)), None)

    def _add(self, dataset: Dataset, version: Version) -> bool:
        """Only what is new; False, with nothing changed, if the data set does not only add to what is published."""
        if not version.data_version or version.buckets != dataset.manifest.buckets:
            return False
        tables = self._tables(version)
        added = additions(dataset, tables.written(), version.sharding, tables.shards, most=MOST_ADDED)
        if added is None:
            return False
        ready = prepared(self.connections.get(), self.definitions, version, dataset, added)
        if ready is None:
            return False
        with self.connections.writing_in_turn(PUBLISHING) as connection:
            if not write_additions(connection, self.definitions, version, ready):
                return False
            tables.put_on_display(dataset.manifest.data_version, tables.applied())
            self._drop_others(connection, version.number)
        return True

    def _publish_all(self, dataset: Dataset) -> None:
        version = self._begun(dataset)
        written = self._tables(version).written()
        tasks = [task for task in tasks_of(dataset) if task not in written]
        for bucket in bucket_states(dataset, self.definitions, tasks):
            self._write(version, bucket)
        users = {user_id: json.dumps(tokens) for user_id, tokens in dataset.users().iter_rows()}
        for part in _parts(users.items(), ROWS_AT_ONCE):
            with self._step(version) as tables:
                tables.put_attributes(dict(part))
        while self._apply_part(version):
            pass
        with self.connections.writing_in_turn(PUBLISHING) as connection:
            tables = self._tables(version)
            log = log_after(connection, tables.applied())
            is_known = which_are_held(version.sharding, log, tables.shards)
            tables.apply(log.filter(~is_known))
            tables.note_brought(log.filter(is_known))
            tables.put_on_display(version.data_version, counters_of(connection).next_row - 1)
            self._drop_others(connection, version.number)

    def _write(self, version: Version, bucket: BucketStates) -> None:
        """Store the states of a bucket of a data set. They count once it is noted that they are there."""
        entity = next(each for each in ENTITIES if each.name == bucket.task[0])
        for part in _parts(bucket.states.items(), STATES_AT_ONCE):
            with self._step(version) as tables:
                tables.put(entity, dict(part))
        for pairs in bucket.of_users.met.iter_slices(ROWS_AT_ONCE) if bucket.of_users else ():
            with self._step(version) as tables:
                tables.add_met(pairs)
        with self._step(version) as tables:
            tables.note(bucket)

    def _apply_part(self, version: Version) -> bool:
        """Some of the appended events that the data set does not bring; False if only few are left, or none.

        Nobody else writes this version: what it leads to is computed while others append.
        """
        tables = self._tables(version)
        log = log_after(self.connections.get(), tables.applied(), LOGGED_AT_ONCE)
        if log.height <= LEFT_AT_MOST:
            return False
        is_known = which_are_held(version.sharding, log, tables.shards)
        new = log.filter(~is_known)
        states = tables.updated(new)
        with self._step(version) as tables:
            tables.put_all(states, new)
            tables.note_brought(log.filter(is_known))
            tables.put_applied(log.get_column(SOURCE_ROW)[-1])
        return True

    def _tidy(self, version: Version) -> None:
        """Forget the appended events that the data set brought, and delete what nobody reads any more."""
        forgotten = ROWS_AT_ONCE
        while forgotten == ROWS_AT_ONCE:
            with self._step(version) as tables:
                forgotten = tables.forget_brought(ROWS_AT_ONCE)
        for name in dropped_tables(self.connections.get()):
            with self.connections.writing_in_turn(PUBLISHING) as connection:
                connection.execute(f"DROP TABLE {name}")
        self.connections.get().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _begun(self, dataset: Dataset) -> Version:
        """The version to write: one that a killed publication left, or a new one."""
        sharding = sharding_of(dataset)
        with self.connections.writing_in_turn(PUBLISHING) as connection:
            for each in versions(connection):
                if each.published:
                    continue
                if self._is_mine(each) and each.data_version == dataset.manifest.data_version:
                    return each
                drop_version(connection, each.number)
            return new_version(
                connection, self.definitions, dataset.manifest.data_version, sharding.buckets, sharding.shards
            )

    def _put_on_display(
        self, connection: sqlite3.Connection, version: Version, data_version: str, applied: int
    ) -> None:
        self._tables(version).put_on_display(data_version, applied)
        self._drop_others(connection, version.number)

    @contextmanager
    def _step(self, version: Version) -> Iterator[VersionTables]:
        """A short transaction: whoever appends waits for one step, not for the whole publication."""
        with self.connections.writing_in_turn(PUBLISHING):
            yield self._tables(version)

    def _drop_others(self, connection: sqlite3.Connection, number: int) -> None:
        """Only the newest version of other definitions stays, for code that still reads it, until the next one."""
        others = [each for each in versions(connection) if each.published and each.number != number]
        was_current = others[0] if others else None
        for each in others:
            if each != was_current or self._is_mine(each):
                drop_version(connection, each.number)

    def _versions(self) -> list[Version]:
        return versions(self.connections.get())

    def _tables(self, version: Version) -> VersionTables:
        return VersionTables(self.connections.get(), self.definitions, version.number)

    def _is_mine(self, version: Version) -> bool:
        return version.definitions == self.definitions.fingerprint


def _parts(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Some of them at a time."""
    remaining = iter(values)
    while part := list(itertools.islice(remaining, size)):
        yield part
