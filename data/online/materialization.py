"""From a data set to the states of its entities: bucket by bucket, each on its own, on Ray Data or in this process.

A store writes what comes out of `bucket_states` beside what is read, and switches when it is complete. If a new version
of a data set only adds events to the one published last (`additions`), these alone are applied.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.dataset import Dataset
from data.online.entity_state import THE_ONLY_ID, EntityStates
from data.online.states.update import State
from data.online.stores.definitions import Definitions
from data.online.stores.published_ids import Sharding, id_hashes
from data.parallel import Run, in_process, on_ray
from data.schema import EVENT_ID, EVENTS, ITEM_ID, USER_ID
from data.views import EVERYTHING, ITEM, USER, FeatureView

BUCKETS_AT_ONCE = 16
"""Of the buckets of which additions are looked for, so many have their ids in memory: some MB each."""

Task = tuple[str, int]
"""Name of an entity and number of a bucket."""


@dataclass(frozen=True, eq=False)
class NotedBucket:
    """What is noted of the events of a bucket of users, to know them again."""

    bucket: int
    ids: Mapping[int, bytes]
    """The hashes of their ids, by shard."""
    digest: str
    """Of all that they say."""


@dataclass(frozen=True, eq=False)
class BucketOfUsers(NotedBucket):
    """What a bucket of users says besides the states of its users."""

    everything: State
    """The state of EVERYTHING, as far as these events go."""
    met: pl.DataFrame
    """user_id, item_id: who met what."""


@dataclass(frozen=True, eq=False)
class BucketStates:
    """The states of the entities of a bucket."""

    task: Task
    states: Mapping[str, State]
    events: int
    of_users: BucketOfUsers | None


@dataclass(frozen=True, eq=False)
class Additions(NotedBucket):
    """What a new version of a data set adds to a bucket of users; of the ids only the shards that change."""

    events: pl.DataFrame


def tasks_of(dataset: Dataset) -> list[Task]:
    """All buckets of a data set."""
    return [(entity.name, bucket) for entity in (USER, ITEM) for bucket in range(dataset.manifest.buckets)]


def sharding_of(dataset: Dataset) -> Sharding:
    """How the ids of a data set's events are divided."""
    return Sharding.for_events(dataset.manifest.events, dataset.manifest.buckets)


def bucket_states(
    dataset: Dataset, definitions: Definitions, tasks: Sequence[Task], run: Run | None = None
) -> Iterator[BucketStates]:
    """The states of some buckets, in any order: on Ray Data if this process has a session."""
    run = run or (on_ray if _has_session() else in_process)
    return iter(run(functools.partial(_states_of_bucket, dataset, definitions.views), tasks))


def additions(
    dataset: Dataset,
    digests: Mapping[Task, str],
    sharding: Sharding,
    shards: Callable[[Sequence[int]], Mapping[int, bytes]],
    *,
    most: int,
    run: Run | None = None,
) -> list[Additions] | None:
    """What the buckets of users have besides the events published before, without those that are as before.

    None if one lacks or changes an event, or if there are more than `most`. `digests` are those of the published
    buckets, `shards` reads some shards of their ids: those of `BUCKETS_AT_ONCE` are held at a time.
    """
    run = run or (on_ray if _has_session() else in_process)
    mine = [(bucket, digest) for (entity, bucket), digest in digests.items() if entity == USER.name]
    found: list[Additions] = []
    for start in range(0, len(mine), BUCKETS_AT_ONCE):
        some = mine[start : start + BUCKETS_AT_ONCE]
        tasks = [NotedBucket(bucket, shards(sharding.shards_of(bucket)), digest) for bucket, digest in some]
        for each in run(functools.partial(additions_to, dataset, sharding), tasks):
            if each is None or sum(one.events.height for one in (*found, each)) > most:
                return None
            if not each.events.is_empty():
                found.append(each)
    return found


def additions_to(dataset: Dataset, sharding: Sharding, published: NotedBucket) -> Additions | None:
    """What a bucket of users has besides the events published before; None if it lacks or changes one of these."""
    events = dataset.bucket(USER, published.bucket, EVENTS.names)
    digest = digest_of(events)
    if digest == published.digest:
        return Additions(published.bucket, {}, digest, events.clear())
    hashes = np.frombuffer(b"".join(published.ids.values()), dtype=np.int64)
    is_known = pl.Series(np.isin(id_hashes(events), hashes))
    if is_known.sum() != len(hashes) or digest_of(events.filter(is_known)) != published.digest:
        return None
    ids = sharding.split(published.bucket, events)
    changed = {shard: each for shard, each in ids.items() if len(each) != len(published.ids.get(shard, b""))}
    return Additions(published.bucket, changed, digest, events.filter(~is_known))


def brought(log: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame | None:
    """Which appended events a data set brings with those that it adds; None if it says something else of one."""
    same_ids = log.join(added.select(EVENT_ID), on=EVENT_ID, how="semi")
    same = log.join(added, on=EVENTS.names, how="semi", nulls_equal=True)
    return same if same.height == same_ids.height else None


def digest_of(events: pl.DataFrame) -> str:
    """Digest of a set of events, in whatever order. Another release of polars gives another one."""
    total = int(np.add.reduce(events.select(EVENTS.names).hash_rows(seed=0).to_numpy(), dtype=np.uint64))
    return f"{pl.__version__} {events.height} {total}"


def _has_session() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _states_of_bucket(dataset: Dataset, views: Sequence[FeatureView], task: Task) -> BucketStates:
    name, bucket = task
    entity = next(each for each in (USER, ITEM) if each.name == name)
    events = dataset.bucket(entity, bucket, EVENTS.names)
    states = EntityStates(entity, views)
    found = states.apply(dict.fromkeys(states.ids_of(events)), events)
    of_users = None
    if entity == USER:
        everything = EntityStates(EVERYTHING, views).apply({THE_ONLY_ID: None}, events)[THE_ONLY_ID]
        met = events.select(USER_ID, ITEM_ID).unique(maintain_order=True)
        ids = sharding_of(dataset).split(bucket, events)
        of_users = BucketOfUsers(bucket, ids, digest_of(events), everything, met)
    return BucketStates(task, found, events.height, of_users)
