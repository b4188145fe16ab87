"""Which events each key can see.

A key sees the events of its entity that come before it in (event_time, source_row) and were known by then
(ingest_time <= the key's event_time). In the sorted order of events that is one slice for each key, but for the *late*
events: those that some key of their entity comes after in the order and still does not see. So counts over a slice
are differences of running totals, and the few late events are taken out again where they were not known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data.aggregations import Window
from data.temporal.timeline import Integers, Timeline

KEYS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class Late:
    """Late events: position among the events, and the keys [natural, seen) that miss them."""

    positions: Integers
    natural: Integers
    """First key after the event in the order."""
    seen: Integers
    """First key that sees it; the end of its entity's keys if none does."""

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class Visibility:
    """What keys see of events. All integers are positions in the sorted events or in the sorted keys."""

    events: Timeline
    keys: Timeline
    first: Integers
    """Key → first event of its entity."""
    stop: Integers
    """Key → end of the events that come before it in the order."""
    late: Late

    @cached_property
    def newest(self) -> Integers:
        """Key → the newest event that it sees, or -1."""
        if not len(self.events):
            return np.full(len(self.keys), -1)
        newest = self.stop - 1
        if len(self.late):
            punctual = np.arange(len(self.events))
            punctual[self.late.positions] = -1
            newest = np.where(newest >= 0, np.maximum.accumulate(punctual)[newest], -1)
            arrived = np.full(len(self.keys) + 1, -1)
            np.maximum.at(arrived, self.late.seen, self.late.positions)
            newest = np.maximum(newest, np.maximum.accumulate(arrived)[:-1])
        return np.where(newest >= self.first, newest, -1)

    @cached_property
    def count(self) -> Integers:
        """Key → number of events that it sees."""
        return self.stop - self.first - self.missing(None)

    def begin(self, window: Window) -> Integers:
        """Key → first event of its entity that a window has not left behind."""
        if window.length is None:
            return self.first
        return self.events.lower_bound(self.keys.codes, window.begins_us(self.keys.times))

    def missing(self, window: Window | None, weights: Integers | None = None) -> Integers | int:
        """Key → sum of weights (1 each if None) of the late events in the window that it does not see yet."""
        if not len(self.late):
            return 0
        until = self.late.seen
        if window is not None and window.length is not None:
            until = np.minimum(until, self.expiry(window, self.late.positions))
        added = np.ones(len(self.late), dtype=np.int64) if weights is None else weights[self.late.positions]
        change = np.zeros(len(self.keys) + 1, dtype=np.int64)
        np.add.at(change, self.late.natural, added)
        np.subtract.at(change, until, added)
        return np.cumsum(change)[:-1]

    def expiry(self, window: Window, positions: Integers) -> Integers:
        """Event → first key of its entity for which it has left the window."""
        if window.length is None:
            return self.keys.starts[self.events.codes[positions] + 1]
        return self.keys.lower_bound(self.events.codes[positions], window.expires_us(self.events.times[positions]))

    @cached_property
    def seen_from(self) -> Integers:
        """Event → first key of its entity that sees it, or the end of those."""
        seen = _first_after(self.events, self.keys)
        seen[self.late.positions] = self.late.seen
        return seen

    def last(self, length: int, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[Integers, Integers]]:
        """The newest events, at most `length`, that each wanted key sees, oldest first, for some keys after others.

        Gives positions of events and where each key's begin among them (one more than keys).
        """
        lengths = np.minimum(self.count, length) * wanted
        for start in range(0, len(self.keys), KEYS_AT_ONCE):
            keys = np.arange(start, min(start + KEYS_AT_ONCE, len(self.keys)))
            offsets = np.concatenate([[0], np.cumsum(lengths[keys])])
            begins = np.repeat(self.stop[keys] - lengths[keys] - offsets[:-1], lengths[keys])
            positions = np.arange(offsets[-1]) + begins
            if len(self.late):
                self._walk_back(keys[self._misses[keys]], offsets, start, positions)
            yield positions, offsets

    @cached_property
    def _misses(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.missing(None) > 0) if len(self.late) else np.zeros(len(self.keys), dtype=bool)

    def _walk_back(self, keys: Integers, offsets: Integers, start: int, positions: Integers) -> None:
        """Fill in, from the newest backwards, the positions of keys that miss some events."""
        slots, begins = offsets[keys - start + 1] - 1, offsets[keys - start]
        current = self.stop[keys]
        while True:
            open_ = slots >= begins
            if not open_.any():
                return
            keys, slots, begins, current = keys[open_], slots[open_], begins[open_], current[open_]
            current = self._minima.last_at_most(current - 1, keys)
            positions[slots] = current
            slots -= 1

    @cached_property
    def _minima(self) -> "_Minima":
        seen = np.zeros(len(self.events), dtype=np.int64)
        seen[self.late.positions] = self.late.seen
        return _Minima.of(seen)


@dataclass(frozen=True, eq=False)
class _Minima:
    """Minima of pairs, of pairs of pairs, … of an array: to find the nearest small value in logarithmic time."""

    levels: list[Integers]

    @staticmethod
    def of(values: Integers) -> "_Minima":
        levels = [values]
        while len(levels[-1]) > 1:
            below = levels[-1]
            padded = np.append(below, np.iinfo(np.int64).max) if len(below) % 2 else below
            levels.append(padded.reshape(-1, 2).min(axis=1))
        return _Minima(levels)

    def last_at_most(self, positions: Integers, limits: Integers) -> Integers:
        """The last position, not after each given one, whose value is at most the limit. There must be one."""
        node, height = positions.copy(), np.zeros(len(positions), dtype=np.int64)
        open_ = np.arange(len(positions))
        for level, minima in enumerate(self.levels):
            open_ = open_[minima[node[open_]] > limits[open_]]
            if not len(open_):
                break
            node[open_] = (node[open_] - 1) >> 1
            height[open_] = level + 1
        for level in range(int(height.max(initial=0)), 0, -1):
            inside = np.flatnonzero(height >= level)
            below = self.levels[level - 1]
            right = np.minimum(2 * node[inside] + 1, len(below) - 1)
            node[inside] = np.where(below[right] <= limits[inside], right, 2 * node[inside])
        return node


def visibility(events: Timeline, keys: Timeline, ingested: Integers) -> Visibility:
    """What `keys` see of `events` that were ingested at some times."""
    same = events.equals(keys)
    stop = np.arange(len(keys)) if same else events.lower_bound(keys.codes, keys.times, keys.rows)
    positions = np.flatnonzero(ingested > events.times)
    arrived = events.take(positions)
    natural = _first_after(arrived, keys)
    seen = keys.lower_bound(arrived.codes, ingested[positions])
    is_missed = seen > natural
    late = Late(positions[is_missed], natural[is_missed], seen[is_missed])
    return Visibility(events, keys, events.starts[keys.codes], stop, late)


def _first_after(events: Timeline, keys: Timeline) -> Integers:
    """Event → first key of its entity that comes after it in the order."""
    if events.equals(keys):
        return np.arange(1, len(events) + 1)
    return keys.lower_bound(events.codes, events.times, events.rows + 1)
