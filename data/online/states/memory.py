"""What a writer must remember to count distinct values: a hash of each with the minute in which it was last met.

Readers never need it: it is packed apart from the value. For each counted column in turn the number of values, then
all hashes and minutes, as little-endian 64-bit words.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.online.states.layout import MINUTE_US, StateLayout, Words
from data.online.states.tiles import Places


@dataclass(frozen=True, eq=False)
class Met:
    """Values of one column that entities met."""

    owners: Places
    hashes: Words
    minutes: Words


def newest(met: Sequence[Met]) -> Met:
    """Each value of each entity once, with the newest minute; sorted by entity and hash."""
    owners = np.concatenate([each.owners for each in met])
    hashes = np.concatenate([each.hashes for each in met])
    minutes = np.concatenate([each.minutes for each in met])
    order = np.lexsort((minutes, hashes, owners))
    owners, hashes, minutes = owners[order], hashes[order], minutes[order]
    is_last = np.ones(len(owners), dtype=np.bool_)
    is_last[:-1] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
    return Met(owners[is_last], hashes[is_last], minutes[is_last])


def remembered(met: Met, begins_us: Words | None) -> Met:
    """Without the values that left the longest window, which begins at `begins_us` for each entity."""
    if begins_us is None:
        return met
    kept = met.minutes >= begins_us[met.owners] // MINUTE_US
    return Met(met.owners[kept], met.hashes[kept], met.minutes[kept])


def pack(columns: Sequence[Met], owners: int) -> list[bytes]:
    """The memory of each entity. `columns` are sorted by entity."""
    if not columns:
        return [b""] * owners
    bounds = [np.searchsorted(met.owners, np.arange(owners + 1)) for met in columns]
    counts = np.stack([np.diff(each) for each in bounds], axis=1).astype(np.int64)
    edges = [each.tolist() for each in bounds]
    return [
        b"".join(
            [counts[owner].tobytes()]
            + [
                words[edge[owner] : edge[owner + 1]].tobytes()
                for met, edge in zip(columns, edges, strict=True)
                for words in (met.hashes, met.minutes)
            ]
        )
        for owner in range(owners)
    ]


def unpack(layout: StateLayout, memories: Sequence[bytes], owners: Words) -> list[Met]:
    """The counted columns of all memories, the entities called by `owners`."""
    columns = len(layout.counted)
    parts: list[list[Met]] = [[_NOTHING] for _ in range(columns)]
    for memory, owner in zip(memories, owners.tolist(), strict=True):
        words = np.frombuffer(memory, dtype=np.int64)
        place = columns
        for column, count in enumerate(words[:columns].tolist()):
            hashes, minutes = words[place : place + count], words[place + count : place + 2 * count]
            parts[column].append(Met(np.full(count, owner), hashes, minutes))
            place += 2 * count
    return [
        Met(
            np.concatenate([part.owners for part in column]),
            np.concatenate([part.hashes for part in column]),
            np.concatenate([part.minutes for part in column]),
        )
        for column in parts
    ]


_NOTHING = Met(*[np.zeros(0, dtype=np.int64)] * 3)


def hashes_of(values: pl.Series) -> Words:
    """A stable 64-bit hash of each value, none of which is null. Equal for 0.0 and -0.0."""
    if isinstance(values.dtype, pl.String):
        texts = values.to_list()
        hashes = {text: hash_of(text) for text in set(texts)}
        return np.fromiter(map(hashes.__getitem__, texts), dtype=np.int64, count=len(texts))
    if values.dtype.is_float():
        return (values.cast(pl.Float64) + 0.0).fill_nan(float("nan")).to_numpy().view(np.int64)
    return values.cast(pl.Int64).to_numpy()


def hash_of(text: str) -> int:
    """A stable 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
