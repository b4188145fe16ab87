"""The online store in a Redis: for several machines, selected by `TOWERLINE_ONLINE_STORE`.

A read is one MGET: of the number of the version that is read and of the values asked for in the version that was read
last; should they differ, once more. Whoever appends events writes the states they touch in the transaction that stores
them, if nobody else wrote since they were read. How durable a write is, Redis's own configuration says (`appendfsync`).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from redis.client import Pipeline

from data.dataset import Dataset
from data.online.states.update import State
from data.online.stores.appending import numbered, to_contract
from data.online.stores.definitions import Definitions
from data.online.stores.published_ids import which_are_held
from data.online.stores.reads import Reads
from data.online.stores.redis_connection import RedisConnection
from data.online.stores.redis_hold import give_way
from data.online.stores.redis_publication import RedisPublication
from data.online.stores.redis_version import (
    Keys,
    VersionKeys,
    counters_of,
    log_after,
    new_number,
    put_log,
    put_version,
    versions,
)
from data.online.stores.version import Version
from data.quality.validation import polars_schema
from data.schema import ATTRIBUTES, EVENT_ID, USER_ID, USERS
from data.views import Entity, FeatureView

USER_TYPES = polars_schema(USERS)


class RedisStore(Reads):
    """The online store of one data set in a Redis. Usable from several threads, and picklable."""

    def __init__(self, address: str, dataset: str, views: Sequence[FeatureView]) -> None:
        """Nothing is opened or made before the first use."""
        self._dataset = dataset
        self._definitions = Definitions(views)
        self._redis = RedisConnection(address)
        self._keys = Keys(dataset)
        self._current = self._keys.current(self._definitions.fingerprint)
        self._number: bytes | None = None

    def __reduce__(self) -> tuple[type["RedisStore"], tuple[str, str, tuple[FeatureView, ...]]]:
        return RedisStore, (self._redis.address, self._dataset, self._definitions.views)

    def publish(self, dataset: Dataset) -> int:
        """See `OnlineStore`; so for all methods."""
        return RedisPublication(self._redis, self._keys, self._definitions).publish(dataset)

    def append_events(self, events: pl.DataFrame) -> int:
        rows = to_contract(events)
        if rows.is_empty():
            return 0
        decides = [self._keys.counters, self._keys.versions, self._keys.held, self._current]
        return self._redis.transaction(decides, self._keys.done, lambda pipe: self._append(pipe, rows))

    def values(self, entity: Entity, ids: Sequence[str]) -> list[bytes | None]:
        return self._values(f"{entity.name}:", ids)

    def states(self, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        memories = [f"memory:{entity.name}:{each}" for each in ids]
        found = self._values("", [*(f"{entity.name}:{each}" for each in ids), *memories])
        values, memories_of = found[: len(ids)], found[len(ids) :]
        return {
            each: State(value, memory or b"")
            for each, value, memory in zip(ids, values, memories_of, strict=True)
            if value is not None
        }

    def _values(self, kind: str, names: Sequence[str]) -> list[bytes | None]:
        """One read, which says as well whether it was of the version that is read."""
        while True:
            number = self._number
            prefix = self._keys.of(number, kind)
            asked = [self._current, *[prefix + name for name in names]]
            found = self._redis.mget(asked)
            if found[0] == number:
                if number is None and names:
                    self._require_none()
                return found[1:]
            self._number = found[0]

    def seen_items(self, user_ids: Sequence[str]) -> list[frozenset[str]]:
        def ask(pipe: Pipeline, number: bytes | None) -> None:
            for user_id in user_ids:
                pipe.smembers(self._keys.of(number, f"met:{user_id}"))

        return [frozenset(item.decode() for item in items) for items in self._of_current(ask)]

    def user_attributes(self, user_ids: Sequence[str]) -> pl.DataFrame:
        asked = list(dict.fromkeys(user_ids))

        def ask(pipe: Pipeline, number: bytes | None) -> None:
            for user_id in asked:
                pipe.hget(self._keys.of(number, "attributes"), user_id)

        rows = [(user, json.loads(found)) for user, found in zip(asked, self._of_current(ask), strict=True) if found]
        table = {USER_ID: [row[0] for row in rows], ATTRIBUTES: [row[1] for row in rows]}
        return pl.DataFrame(table, schema=USER_TYPES)

    def appended_events(self) -> pl.DataFrame:
        def read() -> pl.DataFrame:
            return log_after(self._redis.client, self._keys, 0, counters_of(self._redis.client, self._keys))

        return self._redis.patiently(read)

    def published_version(self) -> str | None:
        version = self._mine(self._versions())
        return None if version is None else version.data_version or None

    def fingerprints(self) -> Mapping[str, str]:
        newest = next((each for each in self._versions() if each.published), None)
        found: dict[str, str] = {} if newest is None else json.loads(newest.fingerprints)
        return found

    def close(self) -> None:
        self._redis.close()

    def _append(self, pipe: Pipeline, rows: pl.DataFrame) -> int:
        keys = self._keys
        give_way(pipe, keys)
        known_versions = versions(pipe, keys)
        counters = counters_of(pipe, keys)
        new, after = numbered(rows, self._known(pipe, rows, known_versions), counters)
        if new.is_empty():
            return 0
        version = self._mine(known_versions)
        if version is None and not any(each.published for each in known_versions):
            fingerprints = json.dumps(self._definitions.fingerprints)
            first = new_number(pipe, keys)
            version = Version(first, self._definitions.fingerprint, fingerprints, "", 1, 1, 0, counters.next_row - 1, 1)
        if version is None:
            pipe.multi()
        else:
            is_complete = version.applied >= counters.next_row - 1
            missed = new if is_complete else pl.concat([log_after(pipe, keys, version.applied, counters), new])
            states_of = VersionKeys(keys, self._definitions, version.number)
            states = states_of.updated(pipe, missed)
            pipe.multi()
            for entity, changed in states.items():
                states_of.put(pipe, entity, changed)
            states_of.put_met(pipe, missed)
            events = version.events + missed.height
            put_version(pipe, keys, dataclasses.replace(version, events=events, applied=after.next_row - 1))
            pipe.set(self._current, version.number)
        put_log(pipe, keys, new, after)
        return new.height

    def _known(self, pipe: Pipeline, events: pl.DataFrame, known_versions: list[Version]) -> set[str]:
        """Which of these events were appended before or are published."""
        ids = events.get_column(EVENT_ID).to_list()
        found = pipe.hmget(self._keys.logged, ids)
        known = {event_id for event_id, row in zip(ids, found, strict=True) if row is not None}
        newest = next((each for each in known_versions if each.published and each.data_version), None)
        if newest is None:
            return known
        states_of = VersionKeys(self._keys, self._definitions, newest.number)
        is_held = which_are_held(newest.sharding, events, lambda shards: states_of.shards(pipe, shards))
        return known | set(events.filter(is_held).get_column(EVENT_ID))

    def _of_current(self, ask: Callable[[Pipeline, bytes | None], None]) -> list[Any]:
        """What a pipeline finds in the version that is read, of which there is still the same one afterwards."""

        def read() -> list[Any]:
            with self._redis.client.pipeline(transaction=False) as pipe:
                ask(pipe, self._number)
                pipe.get(self._current)
                found: list[Any] = pipe.execute()
                return found

        while True:
            number = self._number
            *found, current = self._redis.patiently(read)
            if current == number == self._number:
                return found
            self._number = current

    def _versions(self) -> list[Version]:
        return self._redis.patiently(lambda: versions(self._redis.client, self._keys))

    def _require_none(self) -> None:
        """Raises TowerlineError if there are only versions of other definitions."""
        published = self.fingerprints()
        if published:
            self._definitions.require(published, str(self._redis))

    def _mine(self, known_versions: list[Version]) -> Version | None:
        """The version that was published last for these definitions."""
        mine = (each for each in known_versions if each.definitions == self._definitions.fingerprint)
        return next((each for each in mine if each.published), None)
