"""The keys of an online store in Redis: those there once, and those of each published version.

towerline:shop:counters, :versions, :log, :logged    what appended events are numbered by, and their log
towerline:shop:numbers, :held                        the newest version's number; there while appends wait
towerline:shop:current:<definitions>                 the number of the version that is read
towerline:shop:7:user:anna                           the packed value of an entity, in version 7
towerline:shop:7:memory:user:anna                    what its writers remember
towerline:shop:7:met:anna                            the items that a user met
towerline:shop:7:attributes, :ids, :buckets          users' attributes, shards of ids, what is written
towerline:shop:7:progress, :brought                  appended events in it before it is read; those to forget
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from redis.client import Pipeline

from data.events import FIRST_APPENDED_ROW
from data.online.entity_state import THE_ONLY_ID
from data.online.materialization import BucketOfUsers, NotedBucket
from data.online.states.update import State
from data.online.stores.appending import Counters
from data.online.stores.definitions import Definitions
from data.online.stores.version import Version
from data.schema import EVENTS, ITEM_ID, USER_ID
from data.views import ENTITIES, EVENT_TYPES, EVERYTHING, USER, Entity

ROWS_AT_ONCE = 10_000
"""Events of the log in one reply."""

_TIMES = ("event_time", "ingest_time")


class Keys:
    """Names of the keys of a data set's store."""

    def __init__(self, dataset: str) -> None:
        self.prefix = f"towerline:{dataset}:"
        self.counters = f"{self.prefix}counters"
        self.versions = f"{self.prefix}versions"
        self.log = f"{self.prefix}log"
        self.logged = f"{self.prefix}logged"
        self.numbers = f"{self.prefix}numbers"
        self.held = f"{self.prefix}held"
        self.dropped = f"{self.prefix}dropped"
        self.done = f"{self.prefix}done:"

    def current(self, definitions: str) -> str:
        """Key of the number of the version that is read under some definitions."""
        return f"{self.prefix}current:{definitions}"

    def of(self, number: int | bytes | str | None, name: str) -> str:
        """A key of a version; of none, one that is never there."""
        return f"{self.prefix}{number.decode() if isinstance(number, bytes) else number}:{name}"


def versions(client: Any, keys: Keys) -> list[Version]:
    """All versions, the newest first, those being written last. Of a client, or a pipeline that watches."""
    found = [Version(**json.loads(each)) for each in client.hvals(keys.versions)]
    return sorted(found, key=lambda each: (each.published, each.number), reverse=True)


def put_version(pipe: Pipeline, keys: Keys, version: Version) -> None:
    """Note what is known of a version."""
    pipe.hset(keys.versions, str(version.number), json.dumps(dataclasses.asdict(version)))


def counters_of(client: Any, keys: Keys) -> Counters:
    """Where appended events go on."""
    row, stamp = client.hmget(keys.counters, "next_row", "last_stamp")
    return Counters() if row is None else Counters(int(row), int(stamp))


def put_log(pipe: Pipeline, keys: Keys, events: pl.DataFrame, counters: Counters) -> None:
    """Append events to the log; `counters` are those after them."""
    rows = events.with_columns(pl.col(_TIMES).dt.epoch("us")).select(EVENTS.names).rows()
    if rows:
        pipe.hset(keys.log, mapping={str(row[-1]): json.dumps(row) for row in rows})
        pipe.hset(keys.logged, mapping={row[0]: str(row[-1]) for row in rows})
    pipe.hset(keys.counters, mapping={"next_row": counters.next_row, "last_stamp": counters.last_stamp})


def new_number(client: Any, keys: Keys) -> int:
    """The number of a new version: never that of another one, also if that is gone."""
    return int(client.incr(keys.numbers))


def log_after(client: Any, keys: Keys, source_row: int, counters: Counters) -> pl.DataFrame:
    """The appended events after a source row, in order."""
    first = max(source_row + 1, oldest_row(client, keys))
    return log_between(client, keys, first, counters.next_row)


def log_between(client: Any, keys: Keys, first: int, end: int) -> pl.DataFrame:
    """The appended events from a source row to before another, in order."""
    return pl.concat([logged([]), *(logged(part) for part in _log_parts(client, keys, first, end))])


def log_of(client: Any, keys: Keys, event_ids: Sequence[str]) -> pl.DataFrame:
    """Those of some events that were appended."""
    rows: list[bytes] = []
    for start in range(0, len(event_ids), ROWS_AT_ONCE):
        places = client.hmget(keys.logged, event_ids[start : start + ROWS_AT_ONCE])
        there = [place for place in places if place is not None]
        rows += [row for row in (client.hmget(keys.log, there) if there else []) if row is not None]
    return logged(rows)


def oldest_row(client: Any, keys: Keys) -> int:
    """No event of the log has a lower source row."""
    found = client.hget(keys.counters, "oldest")
    return FIRST_APPENDED_ROW if found is None else int(found)


def note_oldest_row(client: Any, keys: Keys) -> None:
    """Find the oldest event of the log after some were forgotten. Rows of the log never come back."""
    end, begin = counters_of(client, keys).next_row, oldest_row(client, keys)
    first = begin
    for part in _log_parts(client, keys, begin, end):
        if part:
            first = json.loads(part[0])[-1]
            break
        first = min(end, first + ROWS_AT_ONCE)
    if first != begin:
        client.hset(keys.counters, "oldest", first)


def _log_parts(client: Any, keys: Keys, first: int, end: int) -> Iterator[list[bytes]]:
    for start in range(first, end, ROWS_AT_ONCE):
        asked = [str(row) for row in range(start, min(end, start + ROWS_AT_ONCE))]
        yield [row for row in client.hmget(keys.log, asked) if row is not None]


def logged(rows: Iterable[bytes]) -> pl.DataFrame:
    """Events of the log as a table."""
    stored = {name: pl.Int64() if name in _TIMES else kind for name, kind in EVENT_TYPES.items()}
    return pl.DataFrame([json.loads(row) for row in rows], schema=stored, orient="row").cast(EVENT_TYPES)


class VersionKeys:
    """The states of one version. Reads of a client or a watching pipeline, writes to a pipeline."""

    def __init__(self, keys: Keys, definitions: Definitions, number: int) -> None:
        self._keys = keys
        self._definitions = definitions
        self.number = number

    def updated(self, client: Any, events: pl.DataFrame) -> dict[Entity, dict[str, State]]:
        """The states that new events lead to."""
        found: dict[Entity, dict[str, State]] = {}
        for entity in ENTITIES:
            states = self._definitions.states[entity]
            ids = states.ids_of(events)
            old = self.states(client, entity, ids)
            found[entity] = states.apply({each: old.get(each) for each in ids}, events)
        return found

    def states(self, client: Any, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        """The states of those that have one."""
        if not ids:
            return {}
        remembers = self._remembers(entity)
        asked = [self._key(entity, each) for each in ids] + [self._memory(entity, each) for each in ids if remembers]
        found = client.mget(asked)
        memories = found[len(ids) :] if remembers else [b""] * len(ids)
        pairs = zip(ids, found, memories, strict=False)
        return {each: State(value, memory) for each, value, memory in pairs if value is not None}

    def put_all(self, pipe: Pipeline, states: Mapping[Entity, Mapping[str, State]]) -> None:
        """Replace states of several kinds."""
        for entity, changed in states.items():
            self.put(pipe, entity, changed)

    def put(self, pipe: Pipeline, entity: Entity, states: Mapping[str, State]) -> None:
        """Replace states."""
        lifetime = self._definitions.states[entity].lifetime
        for each, state in states.items():
            pipe.set(self._key(entity, each), state.value, px=lifetime)
            if self._remembers(entity):
                pipe.set(self._memory(entity, each), state.memory, px=lifetime)

    def put_met(self, pipe: Pipeline, pairs: pl.DataFrame) -> None:
        """Note which users met which items."""
        for (user_id,), items in pairs.group_by(USER_ID):
            pipe.sadd(self._keys.of(self.number, f"met:{user_id}"), *items.get_column(ITEM_ID).to_list())

    def put_noted(self, pipe: Pipeline, bucket: NotedBucket) -> None:
        """A bucket of users is there with these events; shards of ids that are not given stay as they are."""
        if bucket.ids:
            pipe.hset(
                self._keys.of(self.number, "ids"), mapping={str(shard): each for shard, each in bucket.ids.items()}
            )
        self.put_digest(pipe, USER.name, bucket.bucket, bucket.digest)

    def shards(self, client: Any, numbers: Sequence[int]) -> dict[int, bytes]:
        """Some shards of the ids."""
        found = client.hmget(self._keys.of(self.number, "ids"), [str(each) for each in numbers]) if numbers else []
        return {number: each for number, each in zip(numbers, found, strict=True) if each is not None}

    def put_attributes(self, pipe: Pipeline, users: pl.DataFrame) -> None:
        """Replace the attributes of all users."""
        key = self._keys.of(self.number, "attributes")
        pipe.delete(key)
        if not users.is_empty():
            pipe.hset(key, mapping={user_id: json.dumps(tokens) for user_id, tokens in users.iter_rows()})

    def put_digest(self, pipe: Pipeline, entity: str, bucket: int, digest: str) -> None:
        """Note that a bucket is there."""
        pipe.hset(self.buckets, f"{entity}:{bucket}", digest)

    def has(self, client: Any, entity: str, bucket: int) -> bool:
        """Whether a bucket is there."""
        return bool(client.hexists(self.buckets, f"{entity}:{bucket}"))

    def written(self, client: Any) -> dict[tuple[str, int], str]:
        """The buckets that are there, with their digests."""
        found: dict[tuple[str, int], str] = {}
        for field, digest in client.hgetall(self.buckets).items():
            name, _, bucket = field.decode().partition(":")
            found[name, int(bucket)] = digest.decode()
        return found

    def merged_everything(self, client: Any, bucket: BucketOfUsers) -> dict[str, State]:
        """The state of EVERYTHING with a bucket's part of it."""
        parts = [*self.states(client, EVERYTHING, [THE_ONLY_ID]).values(), bucket.everything]
        return self._definitions.states[EVERYTHING].merge({THE_ONLY_ID: parts}, pl.DataFrame(schema=EVENT_TYPES))

    @property
    def buckets(self) -> str:
        """Key of what is written."""
        return self._keys.of(self.number, "buckets")

    @property
    def progress(self) -> str:
        """Key of how far appended events are in a version that nobody reads yet."""
        return self._keys.of(self.number, "progress")

    @property
    def brought(self) -> str:
        """Key of the appended events (source row → id) that the data set brings."""
        return self._keys.of(self.number, "brought")

    def _remembers(self, entity: Entity) -> bool:
        return bool(self._definitions.states[entity].layout.counted)

    def _key(self, entity: Entity, each: str) -> str:
        return self._keys.of(self.number, f"{entity.name}:{each}")

    def _memory(self, entity: Entity, each: str) -> str:
        return self._keys.of(self.number, f"memory:{entity.name}:{each}")
