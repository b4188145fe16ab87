"""Events become part of states: one computation for a single event, a batch and a whole data set.

What a state holds is taken apart into rows like those of events, put together with the new ones and packed again. So
it does not matter whether events come one by one or all at once, nor in which order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from data.online.states import memory
from data.online.states.layout import CLOCK, KNOWN_UNTIL, MINUTE_US, NEVER_US, Recents, StateLayout, Words
from data.online.states.packed import Floats, Packed, assemble
from data.online.states.recents import OWNER, Buffer, Packer, Unpacker, kinds, newest
from data.online.states.tiles import Places, Tiles, from_the_end, joined, merged
from data.schema import EVENT_TIME, INGEST_TIME, SOURCE_ROW
from data.temporal.cells import decayed_weights


@dataclass(frozen=True)
class State:
    """All that is kept of one entity."""

    value: bytes
    """What features are finished from."""
    memory: bytes
    """What only a writer needs (`data.online.states.memory`)."""


@dataclass(frozen=True, eq=False)
class _Newest:
    """The newest event of a view, per entity."""

    times: Words
    rows: Words


class Update:
    """New states of `owners` entities from old ones and events; several old states of one entity are added up."""

    def __init__(
        self, layout: StateLayout, owners: int, old: Sequence[State], old_owners: Sequence[int], events: pl.DataFrame
    ) -> None:
        """`events` have the columns of the contract and `OWNER`, the entity's number; so do `old_owners`."""
        self._layout = layout
        self._owners = owners
        self._old = old
        self._old_owners: Places = np.asarray(old_owners, dtype=np.int64)
        self._packed = Packed(layout, [state.value for state in old]) if old else None
        self._events = events
        self._views = [view.prepared(events) for view in layout.views]

    def states(self) -> list[State]:
        """The new states. An entity without events and old state has one that says so."""
        known_until, clocks = self._moments()
        newest_events = [self._newest(view) for view in range(len(self._layout.views))]
        recents = [self._recents(each) for each in self._layout.recents]
        counted = self._counted(clocks)
        tiles = merged(joined(list(self._tiles(counted))), self._layout.finite, clocks)
        heads = np.zeros((self._owners, self._layout.head_words), dtype=np.int64)
        heads[:, KNOWN_UNTIL], heads[:, CLOCK] = known_until, clocks
        for view, each in enumerate(newest_events):
            heads[:, self._layout.newest_at + 2 * view] = each.times
            heads[:, self._layout.newest_at + 2 * view + 1] = each.rows
        for place, sums in enumerate(self._decayed(newest_events)):
            heads[:, self._layout.decayed_at + place] = sums.view(np.int64)
        for place, numbers in enumerate(self._latest(recents)):
            heads[:, self._layout.latest_at + place] = numbers.view(np.int64)
        totals = from_the_end(tiles, np.bincount(tiles.owners, minlength=self._owners))
        words, bounds = assemble(self._layout, heads, tiles, totals)
        return self._packed_states(words, bounds, recents, memory.pack(counted, self._owners))

    def _packed_states(
        self, words: Words, bounds: list[int], recents: list[pl.DataFrame], memories: list[bytes]
    ) -> list[State]:
        layout = self._layout
        packers = [
            Packer(rows, kinds(layout, each), self._owners) for rows, each in zip(recents, layout.recents, strict=True)
        ]
        states = []
        for owner in range(self._owners):
            parts: list[Buffer] = [words[bounds[owner] : bounds[owner + 1]].tobytes()]
            for packer in packers:
                parts += packer.parts(owner)
            size = sum(map(len, parts))
            parts.append(bytes(-size % 8))
            states.append(State(b"".join(parts), memories[owner]))
        return states

    def _moments(self) -> tuple[Words, Words]:
        """The newest ingest_time, and the moment from which on a state is exact: no event is of a later time."""
        known_until, clocks = np.full(self._owners, NEVER_US), np.full(self._owners, NEVER_US)
        codes = self._codes(self._events)
        times, ingested = (_micros(self._events, column) for column in (EVENT_TIME, INGEST_TIME))
        np.maximum.at(known_until, codes, ingested)
        np.maximum.at(clocks, codes, np.maximum(times, ingested))
        if self._packed is not None:
            np.maximum.at(known_until, self._old_owners, self._packed.known_until)
            np.maximum.at(clocks, self._old_owners, self._packed.clocks)
        return known_until, clocks

    def _newest(self, view: int) -> _Newest:
        events = self._views[view]
        codes, times = self._codes(events), _micros(events, EVENT_TIME)
        rows = events.get_column(SOURCE_ROW).to_numpy()
        if self._packed is not None:
            old = self._packed
            codes = np.concatenate([codes, self._old_owners])
            times, rows = (
                np.concatenate([times, old.newest_times[:, view]]),
                np.concatenate([rows, old.newest_rows[:, view]]),
            )
        order = np.lexsort((rows, times, codes))
        is_last = np.ones(len(order), dtype=np.bool_)
        is_last[:-1] = codes[order][1:] != codes[order][:-1]
        last = order[is_last]
        found = _Newest(np.full(self._owners, NEVER_US), np.full(self._owners, NEVER_US))
        found.times[codes[last]], found.rows[codes[last]] = times[last], rows[last]
        return found

    def _decayed(self, newest_events: list[_Newest]) -> list[Floats]:
        """Recency-weighted sums as of the newest event."""
        sums: list[Floats] = []
        for place, each in enumerate(self._layout.decayed):
            events = self._views[each.view]
            codes, times = self._codes(events), _micros(events, EVENT_TIME)
            weights = decayed_weights(events, each.aggregation.of)
            if self._packed is not None:
                codes = np.concatenate([codes, self._old_owners])
                times = np.concatenate([times, self._packed.newest_times[:, each.view]])
                weights = np.concatenate([weights, self._packed.decayed[:, place]])
            ages = newest_events[each.view].times[codes] - times
            weights = weights * np.exp2(-ages / each.half_life_us)
            sums.append(np.bincount(codes, weights, minlength=self._owners).astype(np.float64))
        return sums

    def _recents(self, recents: Recents) -> pl.DataFrame:
        """The newest events of a view, old and new."""
        types = kinds(self._layout, recents)
        rows = self._views[recents.view].select(
            OWNER, EVENT_TIME, SOURCE_ROW, *(pl.col(name).cast(kind) for name, kind in types.items())
        )
        old = self._unpacked.get(recents.view)
        return newest(rows if old is None else pl.concat([old, rows]), recents.length)

    def _latest(self, recents: list[pl.DataFrame]) -> list[Floats]:
        """The latest numbers; NaN for null."""
        found = []
        of_view = dict(zip((each.view for each in self._layout.recents), recents, strict=True))
        for view, feature in self._layout.latest:
            rows, column = of_view[view], self._layout.views[view].column_of(feature)
            assert column is not None
            numbers = np.full(self._owners, np.nan)
            numbers[rows.get_column(OWNER).to_numpy()] = rows.get_column(column).cast(pl.Float64).to_numpy()
            found.append(numbers)
        return found

    def _counted(self, clocks: Words) -> list[memory.Met]:
        """The values that each counted column remembers."""
        layout = self._layout
        old = memory.unpack(layout, [state.memory for state in self._old], self._old_owners)
        found = []
        for before, each in zip(old, layout.counted, strict=True):
            events = self._views[each.view]
            events = events.drop_nulls(each.column) if events.get_column(each.column).null_count() else events
            met = memory.Met(self._codes(events), memory.hashes_of(events.get_column(each.column)), _minutes(events))
            window = each.window
            begins = None if window.length is None else window.begins_us(clocks)
            found.append(memory.remembered(memory.newest([before, met]), begins))
        return found

    def _tiles(self, counted: list[memory.Met]) -> Iterator[Tiles]:
        """What adds up to the new tiles. The counted columns are counted afresh."""
        summed, inputs = self._layout.summed, self._layout.inputs
        nothing = np.zeros(0, dtype=np.int64)
        yield Tiles(nothing, nothing, np.zeros((0, inputs), dtype=np.int64))
        if self._packed is not None:
            tiles = self._packed.tiles_of(self._old_owners)
            tiles.sums[:, len(summed) :] = 0
            yield tiles
        for view, events in enumerate(self._views):
            sums = np.zeros((events.height, inputs), dtype=np.int64)
            for place, each in enumerate(summed):
                if each.view == view:
                    sums[:, place] = each.of.of(events)
            yield Tiles(self._codes(events), _minutes(events), sums)
        for place, met in enumerate(counted):
            sums = np.zeros((len(met.owners), inputs), dtype=np.int64)
            sums[:, len(summed) + place] = 1
            yield Tiles(met.owners, met.minutes, sums)

    @cached_property
    def _unpacked(self) -> dict[int, pl.DataFrame]:
        """View → the newest events that old states hold."""
        if self._packed is None:
            return {}
        unpackers = [Unpacker(kinds(self._layout, each)) for each in self._layout.recents]
        buffer = memoryview(self._packed.buffer)
        for place in self._packed.recents_at():
            at = place
            for unpacker in unpackers:
                at = unpacker.add(buffer, at)
        return {
            each.view: unpacker.frame(self._old_owners)
            for each, unpacker in zip(self._layout.recents, unpackers, strict=True)
        }

    def _codes(self, events: pl.DataFrame) -> Places:
        codes: Places = events.get_column(OWNER).to_numpy()
        return codes


def _micros(events: pl.DataFrame, column: str) -> Words:
    micros: Words = events.get_column(column).cast(pl.Int64).to_numpy()
    return micros


def _minutes(events: pl.DataFrame) -> Words:
    return _micros(events, EVENT_TIME) // MINUTE_US
