"""Exponentially forgotten sums: forward decay (Cormode et al., ICDE 2009) that neither overflows nor cancels.

A weight is blown up by 2 ** ((its time - landmark) / half_life) and shrunk again at the key, so that one running sum
serves all keys. A landmark serves an epoch of 512 half-lives, which float64 can hold; what lies more than an epoch
back weighs less than 2 ** -512. Running sums restart with every epoch of every entity, so that no large sum swallows
a small one.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from data.temporal.timeline import Integers, Timeline
from data.temporal.visibility import Visibility

Floats = npt.NDArray[np.float64]
_HALF_LIVES = 512
_FORGOTTEN = 1100.0
"""Half-lives after which nothing is left in float64."""


def decayed_sums(seen: Visibility, weights: Floats, half_life_us: int) -> Floats:
    """Key → sum of the weights of the events that it sees, each times 2 ** -(age / half life)."""
    events, late = seen.events, seen.late
    if not len(late):
        return _Decayed(events, events.times, weights, half_life_us).at(seen.keys, seen.stop)
    punctual = np.delete(np.arange(len(events)), late.positions)
    in_order = _Decayed(events.take(punctual), events.times[punctual], weights[punctual], half_life_us)
    by_arrival = np.argsort(late.seen, kind="stable")
    by_arrival = by_arrival[late.seen[by_arrival] < seen.keys.starts[events.codes[late.positions[by_arrival]] + 1]]
    positions, at = late.positions[by_arrival], late.seen[by_arrival]
    arrived = _Decayed(seen.keys.take(at), events.times[positions], weights[positions], half_life_us)
    stop = np.searchsorted(at, np.arange(len(seen.keys)), side="right")
    return in_order.at(seen.keys, np.searchsorted(punctual, seen.stop)) + arrived.at(seen.keys, stop)


class _Decayed:
    """Running sums of weights in the order in which they arrive, at or after their times."""

    def __init__(self, arrivals: Timeline, times: Integers, weights: Floats, half_life_us: int) -> None:
        self._arrivals, self._half_life_us = arrivals, half_life_us
        epoch_us = _HALF_LIVES * half_life_us
        epochs = arrivals.times // epoch_us
        self._landmarks = epochs * epoch_us
        is_first = np.ones(len(arrivals), dtype=bool)
        is_first[1:] = (np.diff(epochs) != 0) | (np.diff(arrivals.codes) != 0)
        self._segments = np.cumsum(is_first) - 1
        self._firsts = np.flatnonzero(is_first)
        blown = weights * np.exp2((times - self._landmarks) / half_life_us)
        self._running = _cumulated(blown, self._segments)

    def at(self, keys: Timeline, stop: Integers) -> Floats:
        """Key → sum of what arrived before position `stop` in its entity: of this epoch and of the one before."""
        if not len(self._arrivals):
            return np.zeros(len(keys))
        starts = self._arrivals.starts[keys.codes]
        newest = stop - 1
        before = np.where(newest >= starts, self._firsts[self._segments[newest]] - 1, -1)
        return self._left(newest, starts, keys.times) + self._left(before, starts, keys.times)

    def _left(self, positions: Integers, starts: Integers, moments_us: Integers) -> Floats:
        """What is left of the running sum at a position; 0 where that is before the start of the entity."""
        age = (moments_us - self._landmarks[positions]) / self._half_life_us
        left: Floats = self._running[positions] * np.exp2(-np.clip(age, 0.0, _FORGOTTEN))
        return np.where(positions >= starts, left, 0.0)


def _cumulated(values: Floats, segments: Integers) -> Floats:
    frame = pl.DataFrame({"value": values, "segment": segments}).with_columns(pl.col("segment").set_sorted())
    return frame.select(pl.col("value").cum_sum().over("segment")).to_series().to_numpy()
