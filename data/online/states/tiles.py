"""Tiles: what the events of an entity add up to, in steps of time that grow with age.

A tile may hold events of one hop of the finest window that can still see it. When that window cannot any more, the
tile is merged into one of the next window's hop, and at last into the tile of all time. Which tile an event belongs to
depends on its time and on the state's clock alone, so the same events give the same tiles in whatever order they came.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.aggregations import Window
from data.online.states.layout import MINUTE_US, NEVER_US, Words

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of several entities, or what is to be added to them. No order, several of one beginning allowed."""

    owners: Places
    """Entity of each."""
    starts: Words
    """Its beginning, in minutes."""
    sums: Words
    """(tiles, inputs): what its events add up to."""


def joined(parts: Sequence[Tiles]) -> Tiles:
    """All of them."""
    return Tiles(
        np.concatenate([part.owners for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.sums for part in parts]),
    )


def merged(tiles: Tiles, windows: Sequence[Window], clocks: Words) -> Tiles:
    """The tiles of each entity as they are at its clock (µs), sorted by entity and beginning, each beginning once.

    Every entity has the tile of all that left every window, which comes first; of the others those that are not zero.
    """
    entities = len(clocks)
    first = np.full(entities, NEVER_US)
    starts = np.concatenate([first, aged(tiles.owners, tiles.starts, windows, clocks)])
    owners = np.concatenate([np.arange(entities), tiles.owners])
    sums = np.concatenate([np.zeros((entities, tiles.sums.shape[1]), dtype=np.int64), tiles.sums])
    order = np.lexsort((starts, owners))
    owners, starts, sums = owners[order], starts[order], sums[order]
    is_new = np.ones(len(owners), dtype=np.bool_)
    is_new[1:] = (owners[1:] != owners[:-1]) | (starts[1:] != starts[:-1])
    firsts = np.flatnonzero(is_new)
    owners, starts = owners[firsts], starts[firsts]
    sums = np.add.reduceat(sums, firsts, axis=0) if len(firsts) and sums.shape[1] else sums[firsts]
    kept = (starts == NEVER_US) | sums.any(axis=1)
    return Tiles(owners[kept], starts[kept], sums[kept])


def aged(owners: Places, starts: Words, windows: Sequence[Window], clocks: Words) -> Words:
    """The beginning of the tile that holds what began at `starts` (minutes), at the clock of its entity (µs)."""
    if not windows:
        return np.full(len(starts), NEVER_US)
    hops = sorted({window.hop_us // MINUTE_US for window in windows})
    starts = starts - starts % hops[0]
    for hop, coarser in zip(hops, [*hops[1:], None], strict=True):
        longest = max((window for window in windows if window.hop_us // MINUTE_US <= hop), key=lambda w: w.length_us)
        begin = longest.begins_us(clocks) // MINUTE_US
        if coarser is None:
            return np.where(starts < begin[owners], NEVER_US, starts)
        begin -= begin % coarser
        starts = np.where(starts < begin[owners], starts - starts % coarser, starts)
    return starts


def from_the_end(tiles: Tiles, counts: Places) -> Words:
    """For each tile what it and all later ones of its entity add up to; integers may wrap around on the way."""
    running = np.cumsum(tiles.sums, axis=0)
    ends = running[np.cumsum(counts) - 1]
    return np.repeat(ends, counts, axis=0) - running + tiles.sums
