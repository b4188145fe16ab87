"""Publishing a data set to Redis: under keys of its own, bucket by bucket, then one switch."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import polars as pl
import redis.exceptions
from redis.client import Pipeline

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.online.materialization import (
    Additions,
    BucketStates,
    additions,
    brought,
    bucket_states,
    sharding_of,
    tasks_of,
)
from data.online.states.update import State
from data.online.stores.definitions import Definitions
from data.online.stores.redis_connection import RedisConnection
from data.online.stores.redis_hold import Hold
from data.online.stores.redis_switch import RedisSwitch, note_brought
from data.online.stores.redis_version import Keys, VersionKeys, counters_of, log_of, new_number, put_version, versions
from data.online.stores.version import Version
from data.schema import EVENT_ID
from data.views import ENTITIES, EVENT_TYPES, EVERYTHING, Entity

Value = TypeVar("Value")

MOST_ADDED = 20_000
"""More additions than that are not applied in one transaction, for which appends wait: everything is published."""

STATES_AT_ONCE = 1_000
KEYS_AT_ONCE = 10_000


@dataclass(frozen=True)
class RedisPublication:
    """One publication. Others of the same version may run beside it: each bucket is counted once."""

    redis: RedisConnection
    keys: Keys
    definitions: Definitions

    def publish(self, dataset: Dataset) -> int:
        """The number of events behind the states, appended ones included."""
        self._require_that_nothing_is_evicted()
        wanted = dataset.manifest.data_version
        mine = self._mine()
        if mine is not None and mine.data_version not in ("", wanted):
            self._add(dataset, mine)
        elif mine is None or mine.data_version != wanted:
            self._publish_all(dataset)
        found = self._mine()
        if found is None or found.data_version != wanted:
            raise self._overtaken()
        self._switch.forget_brought(found)
        self._remove_dropped()
        return found.events

    def _require_that_nothing_is_evicted(self) -> None:
        """Raises TowerlineError if Redis would drop states when its memory is full, and nobody would notice."""
        try:
            found = self.redis.client.config_get("maxmemory-policy")
        except redis.exceptions.RedisError:
            return
        policy = found.get("maxmemory-policy") or ""
        if policy.startswith("allkeys"):
            raise TowerlineError(
                f"the Redis at {self.redis} has maxmemory-policy {policy!r}: it would silently drop features when its "
                "memory is full; set it to 'noeviction'"
            )

    def _add(self, dataset: Dataset, version: Version) -> None:
        """Only what is new, if the data set only adds to what is published; else all of it."""
        if version.buckets != dataset.manifest.buckets:
            self._publish_all(dataset)
            return
        states_of = self._keys_of(version)
        digests = self.redis.patiently(lambda: states_of.written(self.redis.client))
        added = additions(dataset, digests, version.sharding, self._reading(states_of), most=MOST_ADDED)
        if added is None:
            self._publish_all(dataset)
            return
        with Hold(self.redis, self.keys) as hold:
            applied = self.redis.transaction(
                [self.keys.counters, self.keys.versions],
                self.keys.done,
                lambda pipe: self._apply(pipe, hold, dataset, version, added),
            )
        if not applied:
            self._publish_all(dataset)

    def _reading(self, states_of: VersionKeys) -> Callable[[Sequence[int]], Mapping[int, bytes]]:
        return lambda shards: self.redis.patiently(lambda: states_of.shards(self.redis.client, shards))

    def _apply(self, pipe: Pipeline, hold: Hold, dataset: Dataset, version: Version, added: list[Additions]) -> int:
        """1, or 0 with nothing changed if the data set says something else of an appended event."""
        hold.renew(pipe)
        found = versions(pipe, self.keys)
        current = next((each for each in found if each.number == version.number), None)
        events = pl.concat([pl.DataFrame(schema=EVENT_TYPES), *(each.events for each in added)])
        counters = counters_of(pipe, self.keys)
        known = brought(log_of(pipe, self.keys, events.get_column(EVENT_ID).to_list()), events)
        if current is None or known is None or current.applied < counters.next_row - 1:
            return 0
        new = events.join(known, on=EVENT_ID, how="anti")
        states_of = self._keys_of(version)
        states = states_of.updated(pipe, new)
        pipe.multi()
        states_of.put_all(pipe, states)
        states_of.put_met(pipe, new)
        for each in added:
            states_of.put_noted(pipe, each)
        states_of.put_attributes(pipe, dataset.users())
        note_brought(pipe, states_of, known)
        wanted, count = dataset.manifest.data_version, current.events + new.height
        self._switch.put_on_display(pipe, dataclasses.replace(current, data_version=wanted, events=count), found)
        return 1

    def _publish_all(self, dataset: Dataset) -> None:
        version = self._begun(dataset)
        states_of = self._keys_of(version)
        written = self.redis.patiently(lambda: states_of.written(self.redis.client))
        tasks = [task for task in tasks_of(dataset) if task not in written]
        for bucket in bucket_states(dataset, self.definitions, tasks):
            self._write(version, bucket)
        self.redis.patiently(lambda: self._write_attributes(states_of, dataset.users()))
        self._switch.switch(dataset, version)

    def _begun(self, dataset: Dataset) -> Version:
        """The version to write: one that a killed publication left, or a new one."""
        sharding, wanted = sharding_of(dataset), dataset.manifest.data_version

        def begin(pipe: Pipeline) -> int:
            found = versions(pipe, self.keys)
            building = [each for each in found if not each.published]
            for each in building:
                if self._switch.is_mine(each) and each.data_version == wanted:
                    return each.number
            number = new_number(pipe, self.keys)
            pipe.multi()
            for each in building:
                self._switch.drop(pipe, each)
            fingerprints = json.dumps(self.definitions.fingerprints)
            named = (number, self.definitions.fingerprint, fingerprints, wanted)
            put_version(pipe, self.keys, Version(*named, sharding.buckets, sharding.shards, 0, 0, 0))
            return number

        number = self.redis.transaction([self.keys.versions], self.keys.done, begin)
        return self._version(number)

    def _write(self, version: Version, bucket: BucketStates) -> None:
        """Store the states of a bucket of a data set. They count once it is noted that they are there."""
        name, number = bucket.task
        entity = next(each for each in ENTITIES if each.name == name)
        states_of = self._keys_of(version)
        for part in _parts(bucket.states.items(), STATES_AT_ONCE):
            write = functools.partial(
                self._write_states, states_of=states_of, entity=entity, bucket=number, states=dict(part)
            )
            self.redis.transaction([states_of.buckets], self.keys.done, write)

        def note(pipe: Pipeline) -> int:
            self._version(version.number)
            if bucket.task in states_of.written(pipe):
                return 0
            of_users = bucket.of_users
            everything = states_of.merged_everything(pipe, of_users) if of_users else {}
            pipe.multi()
            if of_users:
                states_of.put_all(pipe, {EVERYTHING: everything})
                states_of.put_met(pipe, of_users.met)
                states_of.put_noted(pipe, of_users)
            else:
                states_of.put_digest(pipe, name, number, "")
            return 1

        self.redis.transaction([states_of.buckets], self.keys.done, note)

    def _remove_dropped(self) -> None:
        client = self.redis.client
        for number in self.redis.patiently(lambda: client.smembers(self.keys.dropped)):
            found = client.scan_iter(match=self.keys.of(number, "*"), count=KEYS_AT_ONCE)
            for part in _parts(found, KEYS_AT_ONCE):
                self.redis.patiently(functools.partial(client.unlink, *part))
            client.srem(self.keys.dropped, number)

    def _write_states(
        self, pipe: Pipeline, states_of: VersionKeys, entity: Entity, bucket: int, states: Mapping[str, State]
    ) -> int:
        """1, or 0 if somebody else wrote the bucket: appended events may be in it already."""
        if states_of.has(pipe, entity.name, bucket):
            return 0
        pipe.multi()
        states_of.put(pipe, entity, states)
        return 1

    def _write_attributes(self, states_of: VersionKeys, users: pl.DataFrame) -> None:
        with self.redis.client.pipeline(transaction=True) as pipe:
            states_of.put_attributes(pipe, users)
            pipe.execute()

    def _version(self, number: int) -> Version:
        """Raises TowerlineError if it was dropped."""
        found = self.redis.patiently(lambda: versions(self.redis.client, self.keys))
        version = next((each for each in found if each.number == number), None)
        if version is None:
            raise self._overtaken()
        return version

    def _overtaken(self) -> TowerlineError:
        return TowerlineError(
            f"another data version is being published to {self.redis} at the same time; let one publication end "
            "before the next begins"
        )

    @property
    def _switch(self) -> RedisSwitch:
        return RedisSwitch(self.redis, self.keys, self.definitions)

    def _mine(self) -> Version | None:
        found = self.redis.patiently(lambda: versions(self.redis.client, self.keys))
        return next((each for each in found if each.published and self._switch.is_mine(each)), None)

    def _keys_of(self, version: Version) -> VersionKeys:
        return VersionKeys(self.keys, self.definitions, version.number)


def _parts(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Some of them at a time."""
    remaining = iter(values)
    while part := list(itertools.islice(remaining, size)):
        yield part
