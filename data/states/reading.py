"""Features as of a moment, finished from packed values: all entities of a read at once."""

from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data.aggregations import LastN, Latest
from data.states.layout import MICROSECOND, MINUTE_US, NEVER_US, Recents, StateLayout, Words
from data.states.packed import Floats, Packed
from data.states.recents import Unpacker, kinds

ONE_BY_ONE = 4
"""Up to so many entities are searched one by one, more of them together."""

Mask = npt.NDArray[np.bool_]


class Reader:
    """Finishes the features of a layout."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        finite = layout.finite
        self._lengths = np.array([window.length_us for window in finite], dtype=np.int64)
        self._hops = np.array([window.hop_us for window in finite], dtype=np.int64)
        self._hop_minutes = self._hops // MINUTE_US
        self._inputs = np.arange(layout.inputs)
        self._ttls = np.array([_ttl_us(view.ttl) for view in layout.views], dtype=np.int64)
        numbers = layout.numbers
        self._views = np.array([view for view, _ in numbers], dtype=np.int64)
        defaults: list[Any] = [layout.views[view].features[feature].default for view, feature in numbers]
        self._defaults = np.array([np.nan if each is None else float(each) for each in defaults])
        self._since = np.array([view for view, _ in layout.since], dtype=np.int64)
        self._decayed = np.array([each.view for each in layout.decayed], dtype=np.int64)
        self._half_lives = np.array([each.half_life_us for each in layout.decayed], dtype=np.float64)

    def numbers(self, packed: Packed, at_us: int) -> Floats:
        """(entities, `layout.numbers`) as of a moment, or as of each state's clock if that is later."""
        moments = np.maximum(packed.clocks, at_us)[:, None]
        ages = moments - packed.newest[:, :, 0]
        parts = [self._layout.finishing.finish(self._cells(packed, moments))] if self._layout.ratios else []
        if len(self._since):
            parts.append(ages.take(self._since, axis=1) / 1e6)
        if len(self._decayed):
            parts.append(packed.decayed * np.exp2(-ages.take(self._decayed, axis=1) / self._half_lives))
        if self._layout.latest:
            parts.append(packed.latest)
        finished = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        is_known = self._is_known(packed, ages)
        if is_known.all():
            return finished
        return np.where(is_known.take(self._views, axis=1), finished, self._defaults)

    def columns(self, packed: Packed, at_us: int) -> dict[str, pl.Series]:
        """Feature → its values in its own type, in the order of the views."""
        numbers = self.numbers(packed, at_us)
        moments = np.maximum(packed.clocks, at_us)[:, None]
        is_known = self._is_known(packed, moments - packed.newest[:, :, 0])
        found = {
            feature: pl.Series(feature, np.ascontiguousarray(numbers[:, place]))
            for place, (_, feature) in enumerate(self._layout.numbers)
        }
        found |= self._from_recents(packed, is_known)
        return {
            feature: found[feature].cast(kind).alias(feature)
            for view in self._layout.views
            for feature, kind in view.schema().items()
        }

    def _is_known(self, packed: Packed, ages: Words) -> Mask:
        """(entities, views): whether there is an event that is not older than the time to live."""
        is_known: Mask = (ages <= self._ttls) & (packed.newest[:, :, 0] != NEVER_US)
        return is_known

    def _cells(self, packed: Packed, moments: Words) -> Words:
        """(entities, windows x inputs): the row of each window's first live tile."""
        layout = self._layout
        first_live = np.zeros((len(moments), len(layout.windows)), dtype=np.int64)
        if len(self._lengths):
            begins = (moments - self._lengths) // self._hops * self._hop_minutes
            first_live[:, :-1] = self._search(packed, begins)
        sums_at = packed.begins + (layout.head_words + packed.tiles)
        rows = first_live * layout.inputs + sums_at[:, None]
        return packed.words.take(rows[:, :, None] + self._inputs).reshape(len(moments), -1)

    def _search(self, packed: Packed, begins: Words) -> Words:
        """For each entity and window, the number of tiles before the window's beginning (minutes)."""
        starts_at = packed.begins + self._layout.head_words
        if len(begins) <= ONE_BY_ONE:
            ends = (starts_at + packed.tiles).tolist()
            bounds = zip(starts_at.tolist(), ends, begins, strict=True)
            return np.stack([packed.words[start:end].searchsorted(wanted) for start, end, wanted in bounds])
        before = np.zeros(begins.shape, dtype=np.int64)
        tiles, at = packed.tiles[:, None], starts_at[:, None] - 1
        step = 1 << int(packed.tiles.max()).bit_length() - 1
        while step:
            probe = before + step
            is_before = packed.words.take(at + np.minimum(probe, tiles)) < begins
            before += step * (is_before & (probe <= tiles))
            step >>= 1
        return before

    def _from_recents(self, packed: Packed, is_known: Mask) -> dict[str, pl.Series]:
        """Sequences and latest values."""
        if not self._layout.recents:
            return {}
        unpackers = [Unpacker(types) for types in self._types]
        buffer = memoryview(packed.buffer)
        for place in packed.recents_at():
            at = place
            for unpacker in unpackers:
                at = unpacker.add(buffer, at)
        found: dict[str, pl.Series] = {}
        for each, unpacker in zip(self._layout.recents, unpackers, strict=True):
            rows = unpacker.frame(np.arange(len(packed.begins)))
            found |= self._of_view(each, rows, np.array(unpacker.counts, dtype=np.int64), is_known[:, each.view])
        return found

    @cached_property
    def _types(self) -> list[dict[str, pl.DataType]]:
        return [kinds(self._layout, each) for each in self._layout.recents]

    def _of_view(self, recents: Recents, rows: pl.DataFrame, counts: Words, is_known: Mask) -> dict[str, pl.Series]:
        view = self._layout.views[recents.view]
        ends = np.cumsum(counts)
        found: dict[str, pl.Series] = {}
        for feature, each in view.features.items():
            if isinstance(each, LastN):
                found[feature] = _lists(rows.get_column(each.of), ends, np.minimum(counts, each.length) * is_known)
            elif isinstance(each, Latest):
                values = rows.get_column(each.of).gather(pl.Series(ends - 1).set(pl.Series(~is_known), None))
                if each.default is not None:
                    values = values.set(pl.Series(~is_known), each.default)
                found[feature] = values
        return found


def _lists(values: pl.Series, ends: Words, lengths: Words) -> pl.Series:
    """For each entity the last `lengths` of its values, which end at `ends`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) + np.repeat(ends - lengths - offsets[:-1], lengths)
    chosen = values if len(positions) == len(values) else values.gather(pl.Series(positions))
    lists = pa.LargeListArray.from_arrays(offsets, chosen.to_arrow())
    return pl.Series(values.name, lists, dtype=pl.List(values.dtype))


def _ttl_us(ttl: timedelta | None) -> int:
    return np.iinfo(np.int64).max if ttl is None else ttl // MICROSECOND
