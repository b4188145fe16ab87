"""From a version that holds a data set to the one that is read: appended events, then one switch.

A long log is applied piece by piece while others append; only what is left then is applied in the transaction that
switches, for which appends wait.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from redis.client import Pipeline

from data.dataset import Dataset
from data.online.states.update import State
from data.online.stores.definitions import Definitions
from data.online.stores.published_ids import which_are_held
from data.online.stores.redis_connection import RedisConnection
from data.online.stores.redis_hold import Hold
from data.online.stores.redis_version import (
    ROWS_AT_ONCE,
    Keys,
    VersionKeys,
    counters_of,
    log_between,
    note_oldest_row,
    oldest_row,
    put_version,
    versions,
)
from data.online.stores.version import Version
from data.schema import EVENT_ID, SOURCE_ROW
from data.views import Entity

LEFT_AT_MOST = 1_000
"""Appended events that are applied while others wait, unless more come as fast as they are applied."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Appended events, and what they lead to."""

    end: int
    """Source row after the last one."""
    new: pl.DataFrame
    brought: pl.DataFrame
    """Those that the data set brings."""
    states: Mapping[Entity, Mapping[str, State]]
    events: int
    """All that were applied with this part."""


@dataclass(frozen=True)
class RedisSwitch:
    """The last steps of publishing."""

    redis: RedisConnection
    keys: Keys
    definitions: Definitions

    def switch(self, dataset: Dataset, version: Version) -> None:
        """Apply the appended events that the data set does not bring, and make this the version that is read."""
        states_of = VersionKeys(self.keys, self.definitions, version.number)
        left, before = self._left(states_of), None
        while left > LEFT_AT_MOST and (before is None or left < before):
            apply = functools.partial(self._apply_part, states_of=states_of, version=version)
            if not self.redis.transaction([states_of.progress], self.keys.done, apply):
                break
            left, before = self._left(states_of), left
        decides = [self.keys.counters, self.keys.versions, states_of.progress]
        with Hold(self.redis, self.keys) as hold:
            self.redis.transaction(
                decides, self.keys.done, lambda pipe: self._put_on_display(pipe, hold, dataset, version)
            )

    def put_on_display(self, pipe: Pipeline, version: Version, found: list[Version]) -> None:
        """Make this the version that is read. Of the others only the newest of other definitions stays."""
        number = 1 + max(each.published for each in found)
        put_version(pipe, self.keys, dataclasses.replace(version, published=number))
        pipe.set(self.keys.current(self.definitions.fingerprint), version.number)
        others = [each for each in found if each.published and each.number != version.number]
        for each in others:
            if each != others[0] or self.is_mine(each):
                self.drop(pipe, each)

    def drop(self, pipe: Pipeline, version: Version) -> None:
        """Its keys go when nobody can be told to read them any more."""
        pipe.hdel(self.keys.versions, str(version.number))
        pipe.sadd(self.keys.dropped, version.number)
        if not self.is_mine(version):
            pipe.delete(self.keys.current(version.definitions))

    def forget_brought(self, version: Version) -> None:
        """The data set that is read has these appended events now."""
        client: Any = self.redis.client
        states_of = VersionKeys(self.keys, self.definitions, version.number)

        def forget() -> None:
            there = False
            for part in _scanned(client, states_of.brought):
                there = True
                with client.pipeline(transaction=True) as pipe:
                    pipe.hdel(self.keys.log, *part)
                    pipe.hdel(self.keys.logged, *part.values())
                    pipe.execute()
            if there:
                note_oldest_row(client, self.keys)
                client.delete(states_of.brought)

        self.redis.patiently(forget)

    def is_mine(self, version: Version) -> bool:
        """Whether a version is of these definitions."""
        return version.definitions == self.definitions.fingerprint

    def _left(self, states_of: VersionKeys) -> int:
        """How many appended events are not applied yet, or forgotten."""

        def count() -> int:
            client = self.redis.client
            applied, _ = _progress(client, states_of)
            first = max(applied + 1, oldest_row(client, self.keys))
            return counters_of(client, self.keys).next_row - first

        return self.redis.patiently(count)

    def _apply_part(self, pipe: Pipeline, states_of: VersionKeys, version: Version) -> int:
        """1, or 0 if somebody else switched or dropped the version."""
        if not any(each.number == version.number and not each.published for each in versions(pipe, self.keys)):
            return 0
        part = self._part(pipe, states_of, version, ROWS_AT_ONCE)
        pipe.multi()
        self._put(pipe, states_of, part)
        return 1

    def _put_on_display(self, pipe: Pipeline, hold: Hold, dataset: Dataset, version: Version) -> int:
        """1, or 0 if somebody else did it, or dropped the version."""
        hold.renew(pipe)
        found = versions(pipe, self.keys)
        if not any(each.number == version.number and not each.published for each in found):
            return 0
        states_of = VersionKeys(self.keys, self.definitions, version.number)
        part = self._part(pipe, states_of, version, None)
        pipe.multi()
        self._put(pipe, states_of, part)
        events = dataset.manifest.events + part.events
        self.put_on_display(pipe, dataclasses.replace(version, events=events, applied=part.end - 1), found)
        return 1

    def _part(self, pipe: Pipeline, states_of: VersionKeys, version: Version, most: int | None) -> _Part:
        applied, events = _progress(pipe, states_of)
        end = counters_of(pipe, self.keys).next_row
        first = max(applied + 1, oldest_row(pipe, self.keys))
        end = end if most is None else min(end, first + most)
        log = log_between(pipe, self.keys, first, end)
        is_known = which_are_held(version.sharding, log, lambda shards: states_of.shards(pipe, shards))
        new = log.filter(~is_known)
        return _Part(end, new, log.filter(is_known), states_of.updated(pipe, new), events + new.height)

    def _put(self, pipe: Pipeline, states_of: VersionKeys, part: _Part) -> None:
        states_of.put_all(pipe, part.states)
        states_of.put_met(pipe, part.new)
        note_brought(pipe, states_of, part.brought)
        pipe.hset(states_of.progress, mapping={"applied": part.end - 1, "events": part.events})


def note_brought(pipe: Pipeline, states_of: VersionKeys, events: pl.DataFrame) -> None:
    """To be forgotten when the version is read."""
    if not events.is_empty():
        rows = events.select(SOURCE_ROW, EVENT_ID).iter_rows()
        pipe.hset(states_of.brought, mapping={str(row): event_id for row, event_id in rows})


def _progress(client: Any, states_of: VersionKeys) -> tuple[int, int]:
    """The source row up to which appended events are applied, and how many these were."""
    applied, events = client.hmget(states_of.progress, "applied", "events")
    return (0, 0) if applied is None else (int(applied), int(events))


def _scanned(client: Any, key: str) -> Any:
    """A hash in parts."""
    cursor = None
    while cursor != 0:
        cursor, part = client.hscan(key, cursor or 0, count=ROWS_AT_ONCE)
        if part:
            yield part
