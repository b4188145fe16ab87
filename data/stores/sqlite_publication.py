"""Publishing a data set to SQLite: beside what is read, bucket by bucket, then one switch."""

import sqlite3
from dataclasses import dataclass

import polars as pl

from data.dataset import Dataset
from data.materialization import Additions, additions, brought, bucket_states, sharding_of, tasks_of
from data.schema import EVENT_ID, USER_ID
from data.stores.definitions import Definitions
from data.stores.published_ids import Sharding, holds
from data.stores.sqlite_connection import Connections
from data.stores.sqlite_version import (
    VersionTables,
    counters_of,
    drop_version,
    log_after,
    new_version,
    versions,
)
from data.stores.version import Version
from data.views import USER

LOGGED_AT_ONCE = 50_000


@dataclass(frozen=True)
class SqlitePublication:
    """One publication; the caller holds the lock of `Connections.publishing`."""

    connections: Connections
    definitions: Definitions

    def publish(self, dataset: Dataset) -> int:
        """The number of events behind the states, appended ones included."""
        wanted = dataset.manifest.data_version
        mine = [each for each in self._versions() if each.published and self._is_mine(each)]
        if mine and mine[0].data_version != wanted and mine[0].data_version:
            self._add(dataset, mine[0])
        elif not mine or mine[0].data_version != wanted:
            self._publish_all(dataset)
        return next(each for each in self._versions() if self._is_mine(each)).events

    def _add(self, dataset: Dataset, version: Version) -> None:
        """Only what is new, if the data set only adds to what is published; else all of it."""
        added = self._additions(dataset, version)
        if added is None or not self._apply(dataset, version, added):
            self._publish_all(dataset)

    def _additions(self, dataset: Dataset, version: Version) -> dict[int, Additions] | None:
        if version.buckets != dataset.manifest.buckets:
            return None
        tables = self._tables(version)
        sharding = Sharding(version.buckets, version.shards)
        found: dict[int, Additions] = {}
        for (entity, bucket), digest in tables.written().items():
            if entity == USER.name:
                added = additions(dataset, bucket, tables.shards(sharding.shards_of(bucket)), digest)
                if added is None:
                    return None
                found[bucket] = added
        return found

    def _apply(self, dataset: Dataset, version: Version, added: dict[int, Additions]) -> bool:
        """In one transaction. False, with nothing changed, if the data set says something else of an appended event."""
        events = pl.concat([each.events for each in added.values()])
        sharding = Sharding(version.buckets, version.shards)
        with self.connections.writing("publishing") as connection:
            tables = self._tables(version)
            known = brought(log_after(connection, 0), events)
            if known is None or not log_after(connection, version.applied).is_empty():
                return False
            tables.apply(events.join(known, on=EVENT_ID, how="anti"))
            _forget(connection, known)
            for bucket, each in added.items():
                if not each.events.is_empty():
                    tables.put_ids(sharding.split(bucket, each.bucket))
                    tables.put_digest(USER.name, bucket, each.digest)
            tables.put_attributes(dataset.users())
            tables.put_on_display(dataset.manifest.data_version, version.applied)
            self._drop_others(connection, version.number)
        return True

    def _publish_all(self, dataset: Dataset) -> None:
        version = self._begun(dataset)
        tables = self._tables(version)
        written = tables.written()
        tasks = [task for task in tasks_of(dataset) if task not in written]
        for bucket in bucket_states(dataset, self.definitions, tasks):
            with self.connections.writing("publishing"):
                tables.write(bucket)
        with self.connections.writing("publishing"):
            tables.put_attributes(dataset.users())
        with self.connections.writing("publishing") as connection:
            applied = self._apply_log(connection, version)
            tables.put_on_display(version.data_version, applied)
            self._drop_others(connection, version.number)
        self.connections.get().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _begun(self, dataset: Dataset) -> Version:
        """The version to write: one that a killed publication left, or a new one."""
        sharding = sharding_of(dataset)
        with self.connections.writing("publishing") as connection:
            for each in versions(connection):
                if each.published:
                    continue
                if self._is_mine(each) and each.data_version == dataset.manifest.data_version:
                    return each
                drop_version(connection, each.number)
            return new_version(
                connection, self.definitions, dataset.manifest.data_version, sharding.buckets, sharding.shards
            )

    def _apply_log(self, connection: sqlite3.Connection, version: Version) -> int:
        """Apply the appended events that the data set does not bring and forget the others; the last source row."""
        tables = self._tables(version)
        sharding = Sharding(version.buckets, version.shards)
        log = log_after(connection, 0)
        for part in log.iter_slices(LOGGED_AT_ONCE):
            places = [
                sharding.shard_of(user_id, event_id) for event_id, user_id in part.select(EVENT_ID, USER_ID).iter_rows()
            ]
            shards = tables.shards(sorted(set(places)))
            is_known = pl.Series(
                [holds(shards, place, each) for place, each in zip(places, part.get_column(EVENT_ID), strict=True)],
                dtype=pl.Boolean,
            )
            tables.apply(part.filter(~is_known))
            _forget(connection, part.filter(is_known))
        return counters_of(connection).next_row - 1

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


def _forget(connection: sqlite3.Connection, events: pl.DataFrame) -> None:
    """The data set has these now."""
    rows = ([row] for row in events.get_column("source_row").to_list())
    connection.executemany("DELETE FROM log WHERE source_row = ?", rows)
