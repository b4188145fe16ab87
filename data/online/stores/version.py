"""What a store notes of each version of the states in it."""

from dataclasses import dataclass

from data.online.stores.published_ids import Sharding


@dataclass(frozen=True)
class Version:
    """The states of one data version under some definitions."""

    number: int
    definitions: str
    """Fingerprint of all definitions."""
    fingerprints: str
    """View → fingerprint, JSON."""
    data_version: str
    """Empty for what was appended before anything was published."""
    buckets: int
    """Buckets of users of the data set."""
    shards: int
    """Shards of ids in each."""
    events: int
    applied: int
    """The source row up to which appended events are in the states."""
    published: int
    """0 while it is being written, else in which order it was published."""

    @property
    def sharding(self) -> Sharding:
        """How the ids of its events are divided."""
        return Sharding(self.buckets, self.shards)
