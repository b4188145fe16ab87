"""Packed values of several entities, side by side in one buffer."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.errors import TowerlineError
from data.online.states.layout import CLOCK, KNOWN_UNTIL, LAYOUT, TILES, WORDS, StateLayout, Words
from data.online.states.tiles import Tiles

Floats = npt.NDArray[np.float64]


class Packed:
    """Values of some entities. Nothing is copied but their headers."""

    def __init__(self, layout: StateLayout, values: Sequence[bytes]) -> None:
        """Raises TowerlineError if one was packed for other definitions."""
        self.layout = layout
        self.buffer = values[0] if len(values) == 1 else b"".join(values)
        self.words: Words = np.frombuffer(self.buffer, dtype=np.int64)
        sizes = np.fromiter(map(len, values), np.int64, len(values)) >> 3
        self.begins: Words = sizes.cumsum() - sizes
        self.heads: Words = self.words.take(self.begins[:, None] + layout.head)
        self.tiles: Words = self.heads[:, TILES]
        """Number of tiles of each."""
        self.starts_at: Words = self.begins + layout.head_words
        """Where their beginnings are."""
        self.sums_at: Words = self.starts_at + self.tiles
        """Where their sums are."""
        self.clocks: Words = self.heads[:, CLOCK]
        """The moment (µs) from which on each is exact."""
        newest = self.heads[:, layout.newest_at : layout.decayed_at]
        self.newest_times: Words = newest[:, 0::2]
        """(entities, views): event_time (µs) of the newest event."""
        self.newest_rows: Words = newest[:, 1::2]
        """And its source row."""
        for identity in set(self.heads[:, LAYOUT].tolist()):
            require_layout(layout, identity)

    def moments(self, at_us: int) -> Words | int:
        """The moments (entities, 1) that a read at a moment is of; that moment itself if it is so for all."""
        return at_us if self.clocks.max() <= at_us else np.maximum(self.clocks, at_us)[:, None]

    @property
    def known_until(self) -> Words:
        """The newest ingest_time (µs) of each."""
        return self.heads[:, KNOWN_UNTIL]

    @property
    def decayed(self) -> Floats:
        """(entities, recency-weighted sums), as of the newest event of their view."""
        return self._floats(self.layout.decayed_at, self.layout.latest_at)

    @property
    def latest(self) -> Floats:
        """(entities, latest numbers); NaN for null."""
        return self._floats(self.layout.latest_at, self.layout.head_words)

    def starts(self) -> tuple[Words, Words]:
        """The beginnings of all tiles, and the place among them of each entity's first."""
        firsts = self.tiles.cumsum() - self.tiles
        places = np.repeat(self.starts_at - firsts, self.tiles)
        places += np.arange(len(places))
        return self.words.take(places), firsts

    def tiles_of(self, owners: Words) -> Tiles:
        """All tiles, the entities called by `owners`."""
        counts, inputs = self.tiles, self.layout.inputs
        starts, firsts = self.starts()
        rank = np.arange(len(starts)) - np.repeat(firsts, counts)
        sums_at = (np.repeat(self.sums_at, counts) + rank * inputs)[:, None] + np.arange(inputs)
        sums = self.words.take(sums_at) - self.words.take(sums_at + inputs)
        return Tiles(np.repeat(owners, counts), starts, sums)

    def recents_at(self) -> list[int]:
        """Where the newest events of each begin in the buffer (bytes)."""
        places: list[int] = ((self.begins + self.heads[:, WORDS]) << 3).tolist()
        return places

    def _floats(self, begin: int, end: int) -> Floats:
        return self.heads.view(np.float64)[:, begin:end]


def require_layout(layout: StateLayout, identity: int) -> None:
    """Raises TowerlineError for a state that was packed for other definitions."""
    if identity != layout.identity:
        names = ", ".join(view.name for view in layout.views) or "no views"
        raise TowerlineError(
            f"a state of {layout.entity.name!r} ({names}) has layout {identity % 2**64:016x}, expected "
            f"{layout.identity % 2**64:016x}: it was made from other feature definitions; publish again "
            "(jobs.serve_models does)"
        )


def assemble(layout: StateLayout, heads: Words, tiles: Tiles, totals: Words) -> tuple[Words, list[int]]:
    """The words of entities one after the other, and where each begins, with the end of the last.

    `heads` (entities, words of the head) still lack what this knows: the number of tiles and of words. `tiles` are
    sorted by entity and beginning; `totals` are their sums from the end.
    """
    inputs = layout.inputs
    counts = np.bincount(tiles.owners, minlength=len(heads))
    sizes = layout.head_words + counts + (counts + 1) * inputs
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    heads[:, TILES], heads[:, WORDS], heads[:, LAYOUT] = counts, sizes, layout.identity
    words = np.zeros(bounds[-1], dtype=np.int64)
    words[bounds[:-1, None] + np.arange(layout.head_words)] = heads
    rank = np.arange(len(tiles.owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts_at = bounds[tiles.owners] + layout.head_words
    words[starts_at + rank] = tiles.starts
    words[(starts_at + counts[tiles.owners] + rank * inputs)[:, None] + np.arange(inputs)] = totals
    return words, bounds.tolist()
