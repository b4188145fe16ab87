"""The ids of published events, eight bytes each: whether the data set already has an event that is appended.

The 64-bit hashes of a bucket of users lie in shards of some hundred, so that a look-up reads one small blob.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.buckets import bucket_of
from data.online.states.layout import Words
from data.online.states.memory import hash_of, hashes_of
from data.schema import EVENT_ID, USER_ID

IDS_PER_SHARD = 256


@dataclass(frozen=True)
class Sharding:
    """How the ids of a published version are divided."""

    buckets: int
    """Buckets of users."""
    shards: int
    """Shards of each: a power of two."""

    @classmethod
    def for_events(cls, events: int, buckets: int) -> "Sharding":
        """So that a shard holds some hundred ids."""
        wanted = max(1, events // (buckets * IDS_PER_SHARD))
        return cls(buckets, 1 << (wanted - 1).bit_length())

    def shard_of(self, user_id: str, event_id: str) -> int:
        """The shard that an event's id would be in."""
        return bucket_of(user_id, self.buckets) * self.shards + hash_of(event_id) % self.shards

    def shards_of(self, bucket: int) -> range:
        """The shards of a bucket."""
        return range(bucket * self.shards, (bucket + 1) * self.shards)

    def split(self, bucket: int, events: pl.DataFrame) -> dict[int, bytes]:
        """The shards of a bucket of users, in which each hash of an event's id is a little-endian word."""
        hashes = id_hashes(events)
        ordered = hashes[np.argsort(hashes % self.shards, kind="stable")]
        bounds = np.searchsorted(ordered % self.shards, np.arange(self.shards + 1)).tolist()
        return {
            number: ordered[bounds[shard] : bounds[shard + 1]].tobytes()
            for shard, number in enumerate(self.shards_of(bucket))
        }


def id_hashes(events: pl.DataFrame) -> Words:
    """The hash of each event's id."""
    return hashes_of(events.get_column(EVENT_ID))


def which_are_held(
    sharding: Sharding, events: pl.DataFrame, read: Callable[[Sequence[int]], Mapping[int, bytes]]
) -> pl.Series:
    """For each event, whether the data set has its id; `read` gives some shards."""
    places = [
        sharding.shard_of(user_id, event_id) for event_id, user_id in events.select(EVENT_ID, USER_ID).iter_rows()
    ]
    shards = read(sorted(set(places)))
    held = [holds(shards, *pair) for pair in zip(places, events.get_column(EVENT_ID), strict=True)]
    return pl.Series(held, dtype=pl.Boolean)


def holds(shards: Mapping[int, bytes], shard: int, event_id: str) -> bool:
    """Whether an id is in its shard, one of those that were read."""
    return hash_of(event_id) in np.frombuffer(shards.get(shard, b""), dtype=np.int64)
