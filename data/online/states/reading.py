"""Features as of a moment, finished from packed values: all entities of a read at once."""

import operator
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data.aggregations import LastN, Latest
from data.online.states.layout import (
    CLOCK,
    LAYOUT,
    MICROSECOND,
    MINUTE_US,
    NEVER_US,
    TILES,
    Recents,
    StateLayout,
    Words,
)
from data.online.states.packed import Floats, Packed, require_layout
from data.online.states.recents import Unpacker, kinds

_ONE_BY_ONE = 20
"""More entities than that are searched faster together."""

_FARTHEST_MINUTE = 2**38
"""No moment is as many minutes from 1970, and the beginnings of 2**24 entities fit into a word side by side."""

_LONGEST_AGE_US = -NEVER_US // 2
"""An age beyond it is that of no event."""

Mask = npt.NDArray[np.bool_]


class Reader:
    """Finishes the features of a layout."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        finishing = layout.finishing
        self._from_cells = len(finishing.above)
        self._window_of, self._input_of = np.divmod(
            np.concatenate([finishing.above, finishing.below]), layout.inputs or 1
        )
        self._longest = np.array([_longest_age_us(view.ttl) for view in layout.views], dtype=np.int64)
        self._longest_of_one = self._longest.tolist()
        self._begins = (NEVER_US, np.empty(0, dtype=np.int64))
        numbers = layout.numbers
        self._views = np.array([view for view, _ in numbers], dtype=np.int64)
        defaults: list[Any] = [layout.views[view].features[feature].default for view, feature in numbers]
        self._defaults = np.array([np.nan if each is None else float(each) for each in defaults])
        self._others = len(numbers) > self._from_cells
        aged = [
            *((view, 1e6) for view, _ in layout.since),
            *((each.view, float(-each.half_life_us)) for each in layout.decayed),
        ]
        self._since, self._decays = aged[: len(layout.since)], aged[len(layout.since) :]
        self._aged = np.array([view for view, _ in aged], dtype=np.int64)
        self._time_units = np.array([unit for _, unit in aged], dtype=np.float64)
        """What an age is divided by: a second, or a half-life that goes by."""

    def numbers(self, values: Sequence[bytes], at_us: int) -> Floats:
        """(values, `layout.numbers`) as of a moment, or as of each state's clock if that is later."""
        if len(values) == 1:
            finished = self._one(values[0], at_us)
            if finished is not None:
                return finished
        return self.numbers_of(Packed(self._layout, values), at_us)

    def numbers_of(self, packed: Packed, at_us: int) -> Floats:
        """As `numbers`, of values that are unpacked already."""
        layout, moments = self._layout, packed.moments(at_us)
        ages = moments - packed.newest_times
        finished = np.empty((len(ages), len(self._views)))
        self._finish_cells(packed, moments, finished[:, : self._from_cells])
        if self._others:
            others = finished[:, self._from_cells :]
            aged = others[:, : len(self._aged)]
            np.divide(ages.take(self._aged, axis=1), self._time_units, out=aged)
            if layout.decayed:
                decayed = aged[:, len(layout.since) :]
                np.exp2(decayed, out=decayed)
                decayed *= packed.decayed
            if layout.latest:
                others[:, len(self._aged) :] = packed.latest
        is_known = ages <= self._longest
        if False not in is_known.tobytes():
            return finished
        return np.where(is_known.take(self._views, axis=1), finished, self._defaults)

    def _one(self, value: bytes, at_us: int) -> Floats | None:
        """The features of one entity by the fewest steps; None if a view of it is unknown."""
        layout = self._layout
        words = np.frombuffer(value, dtype=np.int64)
        head = words[: layout.decayed_at].tolist()
        require_layout(layout, head[LAYOUT])
        moment = max(at_us, head[CLOCK])
        ages = [moment - time for time in head[layout.newest_at :: 2]]
        if any(map(operator.gt, ages, self._longest_of_one)):
            return None
        begin, tiles, inputs = layout.head_words, head[TILES], layout.inputs
        sums = words[begin + tiles : begin + tiles + (tiles + 1) * inputs].reshape(tiles + 1, inputs)
        first_live = words[begin : begin + tiles].searchsorted(self._begins_at(moment))
        finishing, cells = layout.finishing, sums.take(first_live, axis=0).ravel()
        finished = np.empty(len(self._views))
        finishing.finish_into(finished[: self._from_cells], cells.take(finishing.above), cells.take(finishing.below))
        others = [ages[view] / unit for view, unit in self._since]
        floats = words[layout.decayed_at : begin].view(np.float64).tolist()
        others += [
            number * 2.0 ** (ages[view] / unit) for number, (view, unit) in zip(floats, self._decays, strict=False)
        ]
        others += floats[len(self._decays) :]
        finished[self._from_cells :] = others
        return finished[np.newaxis]

    def _begins_at(self, moment_us: int) -> Words:
        """Where each window begins (minutes). Windows move on in whole minutes: what was found last often serves."""
        minute = moment_us // MINUTE_US
        known = self._begins
        if known[0] != minute:
            begins = [window.begins_us(moment_us) // MINUTE_US for window in self._layout.finite]
            self._begins = known = (minute, np.array([*begins, NEVER_US], dtype=np.int64))
        return known[1]

    def columns(self, packed: Packed, at_us: int) -> list[pl.Series]:
        """The features in their own types, in the order of the views."""
        numbers = np.ascontiguousarray(self.numbers_of(packed, at_us).T)
        ages = packed.moments(at_us) - packed.newest_times
        found = self._from_recents(packed, ages <= self._longest)
        for values, (feature, kind) in zip(numbers, self._number_types.items(), strict=False):
            found[feature] = pl.Series(feature, values.astype(kind, copy=False))
        return [found[feature] for view in self._layout.views for feature in view.features]

    @cached_property
    def _number_types(self) -> dict[str, type[np.generic]]:
        """Of the numbers that are not values of events, which keep the type of their column."""
        layout = self._layout
        types: dict[pl.DataType, type[np.generic]] = {pl.Int64(): np.int64, pl.Float32(): np.float32}
        own = layout.numbers[: len(layout.numbers) - len(layout.latest)]
        return {feature: types.get(layout.views[view].dtype(feature), np.float64) for view, feature in own}

    def _finish_cells(self, packed: Packed, moments: Words | int, finished: Floats) -> None:
        """(entities, ratios): what follows from the rows of each window's first live tile."""
        layout = self._layout
        if isinstance(moments, int):
            begins = self._begins_at(moments)
        else:
            begins = np.stack([self._begins_at(moment) for moment in moments[:, 0].tolist()])
        rows = self._search(packed, begins) * layout.inputs
        rows += packed.sums_at[:, None]
        places = rows.take(self._window_of, axis=1)
        places += self._input_of
        cells = packed.words.take(places)
        layout.finishing.finish_into(finished, cells[:, : self._from_cells], cells[:, self._from_cells :])

    def _search(self, packed: Packed, begins: Words) -> Words:
        """(entities, windows): the number of tiles before the window's beginning."""
        if len(packed.tiles) > _ONE_BY_ONE or begins.ndim > 1:
            return _searched_at_once(packed, begins)
        bounds = zip(packed.starts_at.tolist(), packed.sums_at.tolist(), strict=True)
        return np.array([packed.words[start:end].searchsorted(begins) for start, end in bounds])

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
            found |= self._of_view(each, unpacker, is_known[:, each.view])
        return found

    @cached_property
    def _types(self) -> list[dict[str, pl.DataType]]:
        return [kinds(self._layout, each) for each in self._layout.recents]

    def _of_view(self, recents: Recents, rows: Unpacker, is_known: Mask) -> dict[str, pl.Series]:
        view, counts = self._layout.views[recents.view], np.array(rows.counts, dtype=np.int64)
        ends = np.cumsum(counts)
        found: dict[str, pl.Series] = {}
        for feature, each in view.features.items():
            if isinstance(each, LastN):
                lengths = np.minimum(counts, each.length) * is_known
                found[feature] = _lists(feature, rows.column(each.of), ends, lengths)
            elif isinstance(each, Latest):
                values = rows.column(each.of).gather(pl.Series(ends - 1).set(pl.Series(~is_known), None))
                if each.default is not None:
                    values = values.set(pl.Series(~is_known), each.default)
                found[feature] = values.alias(feature)
        return found


def _searched_at_once(packed: Packed, begins: Words) -> Words:
    """The search of all entities in one sorted array: behind the tiles of each come those of the next."""
    entities = np.arange(len(packed.tiles)) * (2 * _FARTHEST_MINUTE)
    starts, firsts = packed.starts()
    np.maximum(starts, -_FARTHEST_MINUTE, out=starts)
    starts += np.repeat(entities, packed.tiles)
    before = starts.searchsorted(np.maximum(begins, -_FARTHEST_MINUTE) + entities[:, None])
    before -= firsts[:, None]
    return before


def _lists(feature: str, values: pl.Series, ends: Words, lengths: Words) -> pl.Series:
    """For each entity the last `lengths` of its values, which end at `ends`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) + np.repeat(ends - lengths - offsets[:-1], lengths)
    chosen = values if len(positions) == len(values) else values.gather(pl.Series(positions))
    lists = pa.LargeListArray.from_arrays(offsets, chosen.to_arrow())
    return pl.Series(feature, lists, dtype=pl.List(values.dtype))


def _longest_age_us(ttl: timedelta | None) -> int:
    """An event that is older is none; what is not there at all is always older."""
    return _LONGEST_AGE_US if ttl is None else min(_LONGEST_AGE_US, ttl // MICROSECOND)
