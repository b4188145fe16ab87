"""Numbers of distinct values in windows, by the intervals of keys in which each value is there."""

import numpy as np
import polars as pl

from data.aggregations import Window
from data.temporal.timeline import Integers, encode
from data.temporal.visibility import Visibility


def distinct_counts(seen: Visibility, values: pl.Series, window: Window) -> Integers:
    """Key → number of distinct values among the events that it sees in a window; null is no value.

    An event holds its value for the keys from the first that sees it to the first for which it has left the window.
    The intervals of equal values of an entity are united: each starts where those that started before it end.
    """
    positions = np.flatnonzero(values.is_not_null().to_numpy())
    present = values.gather(positions)
    if values.dtype.is_float():
        present = pl.Series(present.to_numpy() + 0.0)  # -0.0 becomes 0.0
    (codes,), _ = encode(present)
    begins, ends = seen.seen_from[positions], seen.expiry(window, positions)
    order, groups = _by_value(codes, seen.events.codes[positions], begins, is_in_order=not len(seen.late))
    begins, ends = begins[order], ends[order]
    offsets = groups * (len(seen.keys) + 1)
    covered = np.maximum.accumulate(ends + offsets) - offsets
    begins[1:] = np.maximum(begins[1:], np.where(groups[1:] == groups[:-1], covered[:-1], 0))
    lasting = begins < ends
    size = len(seen.keys) + 1
    change = np.bincount(begins[lasting], minlength=size) - np.bincount(ends[lasting], minlength=size)
    return np.cumsum(change)[:-1]


def _by_value(
    values: Integers, entities: Integers, begins: Integers, *, is_in_order: bool
) -> tuple[Integers, Integers]:
    """Order by (value, entity, begin), and the number of each one's (value, entity) in that order.

    What is given is sorted by entity and, if `is_in_order`, by begin.
    """
    bits = max(1, len(values)).bit_length()
    order = np.sort((values << bits) | np.arange(len(values))) & ((1 << bits) - 1)
    groups = _groups(values[order], entities[order])
    if not is_in_order:
        order = order[np.argsort(groups * (int(begins.max(initial=0)) + 1) + begins[order])]
    return order, groups


def _groups(values: Integers, entities: Integers) -> Integers:
    is_new = np.ones(len(values), dtype=bool)
    is_new[1:] = (np.diff(values) != 0) | (np.diff(entities) != 0)
    return np.cumsum(is_new) - 1
