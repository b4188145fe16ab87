"""Publishing a data set to Redis: under keys of its own, bucket by bucket, then one switch."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import polars as pl
import redis.exceptions
from redis.client import Pipeline

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.materialization import Additions, BucketStates, additions, brought, bucket_states, sharding_of, tasks_of
from data.schema import EVENT_ID, USER_ID
from data.states.update import State
from data.stores.definitions import Definitions
from data.stores.published_ids import Sharding, holds
from data.stores.redis_connection import RedisConnection
from data.stores.redis_version import (
    Keys,
    VersionKeys,
    counters_of,
    forget,
    log_after,
    put_version,
    versions,
)
from data.stores.version import Version
from data.views import ENTITIES, EVERYTHING, USER, Entity

Value = TypeVar("Value")

MOST_ADDED = 100_000
"""More additions than that are not applied in one transaction: everything is published."""

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
        self._remove_dropped()
        found = self._mine()
        return 0 if found is None else found.events

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
        added = self._additions(dataset, version)
        if added is None or sum(each.events.height for each in added.values()) > MOST_ADDED:
            self._publish_all(dataset)
            return
        applied = self.redis.transaction(
            [self.keys.counters, self.keys.versions],
            self.keys.done,
            lambda pipe: self._apply(pipe, dataset, version, added),
        )
        if not applied:
            self._publish_all(dataset)

    def _additions(self, dataset: Dataset, version: Version) -> dict[int, Additions] | None:
        if version.buckets != dataset.manifest.buckets:
            return None
        states_of, sharding = self._keys_of(version), Sharding(version.buckets, version.shards)
        found: dict[int, Additions] = {}
        written = self.redis.patiently(lambda: states_of.written(self.redis.client))
        for (entity, bucket), digest in written.items():
            if entity == USER.name:
                known = states_of.shards(self.redis.client, sharding.shards_of(bucket))
                added = additions(dataset, bucket, known, digest)
                if added is None:
                    return None
                found[bucket] = added
        return found

    def _apply(self, pipe: Pipeline, dataset: Dataset, version: Version, added: dict[int, Additions]) -> int:
        """1, or 0 with nothing changed if the data set says something else of an appended event."""
        current = next((each for each in versions(pipe, self.keys) if each.number == version.number), None)
        events = pl.concat([each.events for each in added.values()])
        counters = counters_of(pipe, self.keys)
        known = brought(log_after(pipe, self.keys, 0, counters), events)
        if current is None or known is None or current.applied < counters.next_row - 1:
            return 0
        new = events.join(known, on=EVENT_ID, how="anti")
        states_of, sharding = self._keys_of(version), Sharding(version.buckets, version.shards)
        states = states_of.updated(pipe, new)
        found = versions(pipe, self.keys)
        pipe.multi()
        self._put(pipe, states_of, states)
        states_of.put_met(pipe, new)
        for bucket, each in added.items():
            if not each.events.is_empty():
                states_of.put_ids(pipe, sharding.split(bucket, each.bucket))
                states_of.put_digest(pipe, USER.name, bucket, each.digest)
        states_of.put_attributes(pipe, dataset.users())
        forget(pipe, self.keys, known)
        events_now = current.events + new.height
        self._switch(
            pipe, dataclasses.replace(current, data_version=dataset.manifest.data_version, events=events_now), found
        )
        return 1

    def _publish_all(self, dataset: Dataset) -> None:
        version = self._begun(dataset)
        states_of = self._keys_of(version)
        written = self.redis.patiently(lambda: states_of.written(self.redis.client))
        tasks = [task for task in tasks_of(dataset) if task not in written]
        for bucket in bucket_states(dataset, self.definitions, tasks):
            self._write(version, bucket)
        self.redis.patiently(lambda: self._write_attributes(states_of, dataset.users()))
        self.redis.transaction(
            [self.keys.counters, self.keys.versions],
            self.keys.done,
            lambda pipe: self._put_on_display(pipe, dataset, version),
        )

    def _begun(self, dataset: Dataset) -> Version:
        """The version to write: one that a killed publication left, or a new one."""
        sharding, wanted = sharding_of(dataset), dataset.manifest.data_version

        def begin(pipe: Pipeline) -> int:
            found = versions(pipe, self.keys)
            building = [each for each in found if not each.published]
            for each in building:
                if self._is_mine(each) and each.data_version == wanted:
                    return each.number
            number = 1 + max((each.number for each in found), default=0)
            pipe.multi()
            for each in building:
                self._drop(pipe, each)
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
            self.redis.patiently(functools.partial(self._write_states, states_of, entity, dict(part)))

        def note(pipe: Pipeline) -> int:
            self._version(version.number)
            if bucket.task in states_of.written(pipe):
                return 0
            of_users = bucket.of_users
            everything = states_of.merged_everything(pipe, of_users) if of_users else {}
            pipe.multi()
            if of_users:
                self._put(pipe, states_of, {EVERYTHING: everything})
                states_of.put_met(pipe, of_users.met)
                states_of.put_ids(pipe, of_users.ids)
            states_of.put_digest(pipe, name, number, of_users.digest if of_users else "")
            return 1

        self.redis.transaction([states_of.buckets], self.keys.done, note)

    def _put_on_display(self, pipe: Pipeline, dataset: Dataset, version: Version) -> int:
        """Apply the appended events that the data set does not bring, forget the others and switch."""
        found = versions(pipe, self.keys)
        if any(each.number == version.number and each.published for each in found):
            return 0
        self._version(version.number)
        states_of, sharding = self._keys_of(version), Sharding(version.buckets, version.shards)
        counters = counters_of(pipe, self.keys)
        log = log_after(pipe, self.keys, 0, counters)
        places = [sharding.shard_of(user, event) for event, user in log.select(EVENT_ID, USER_ID).iter_rows()]
        shards = states_of.shards(pipe, sorted(set(places)))
        ids = log.get_column(EVENT_ID)
        is_known = pl.Series(
            [holds(shards, place, each) for place, each in zip(places, ids, strict=True)], dtype=pl.Boolean
        )
        new = log.filter(~is_known)
        states = states_of.updated(pipe, new)
        events = dataset.manifest.events + new.height
        pipe.multi()
        self._put(pipe, states_of, states)
        states_of.put_met(pipe, new)
        forget(pipe, self.keys, log.filter(is_known))
        self._switch(pipe, dataclasses.replace(version, events=events, applied=counters.next_row - 1), found)
        return 1

    def _switch(self, pipe: Pipeline, version: Version, found: list[Version]) -> None:
        """Make this the version that is read. Of the others only the newest of other definitions stays."""
        number = 1 + max(each.published for each in found)
        put_version(pipe, self.keys, dataclasses.replace(version, published=number))
        pipe.set(self.keys.current(self.definitions.fingerprint), version.number)
        others = [each for each in found if each.published and each.number != version.number]
        for each in others:
            if each != others[0] or self._is_mine(each):
                self._drop(pipe, each)

    def _drop(self, pipe: Pipeline, version: Version) -> None:
        """Its keys go when nobody can be told to read them any more."""
        pipe.hdel(self.keys.versions, str(version.number))
        pipe.sadd(self.keys.dropped, version.number)
        if not self._is_mine(version):
            pipe.delete(self.keys.current(version.definitions))

    def _remove_dropped(self) -> None:
        client = self.redis.client
        for number in self.redis.patiently(lambda: client.smembers(self.keys.dropped)):
            found = client.scan_iter(match=self.keys.of(number, "*"), count=KEYS_AT_ONCE)
            for part in _parts(found, KEYS_AT_ONCE):
                self.redis.patiently(functools.partial(client.unlink, *part))
            client.srem(self.keys.dropped, number)

    def _put(self, pipe: Pipeline, states_of: VersionKeys, states: Mapping[Entity, Mapping[str, State]]) -> None:
        for entity, changed in states.items():
            states_of.put(pipe, entity, changed)

    def _write_states(self, states_of: VersionKeys, entity: Entity, states: Mapping[str, State]) -> None:
        with self.redis.client.pipeline(transaction=False) as pipe:
            states_of.put(pipe, entity, states)
            pipe.execute()

    def _write_attributes(self, states_of: VersionKeys, users: pl.DataFrame) -> None:
        with self.redis.client.pipeline(transaction=True) as pipe:
            states_of.put_attributes(pipe, users)
            pipe.execute()

    def _version(self, number: int) -> Version:
        """Raises TowerlineError if it was dropped."""
        found = self.redis.patiently(lambda: versions(self.redis.client, self.keys))
        version = next((each for each in found if each.number == number), None)
        if version is None:
            raise TowerlineError(
                f"another data version is being published to {self.redis} at the same time; let one publication end "
                "before the next begins"
            )
        return version

    def _mine(self) -> Version | None:
        found = self.redis.patiently(lambda: versions(self.redis.client, self.keys))
        return next((each for each in found if each.published and self._is_mine(each)), None)

    def _keys_of(self, version: Version) -> VersionKeys:
        return VersionKeys(self.keys, self.definitions, version.number)

    def _is_mine(self, version: Version) -> bool:
        return version.definitions == self.definitions.fingerprint


def _parts(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Some of them at a time."""
    remaining = iter(values)
    while part := list(itertools.islice(remaining, size)):
        yield part
