"""Where everything lies in the packed value of an entity.

    header      tiles, words of numbers, layout, known until, clock
    newest      (event_time, source_row) of the newest event of each view
    decayed     the recency-weighted sums, as of the newest event of their view
    latest      `Latest` numbers
    starts      the beginning of each tile in minutes, sorted; the first is that of all that left every window
    sums        for each tile, and once more for none: what this and all later tiles add up to, input by input
    recents     the newest events of each view (`data.online.states.recents`)

All but the last are little-endian 64-bit words. Since a row of sums holds this tile and all later ones, a window is
one row: that of its first live tile. Views share the tiles, so that a read searches each window once.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data.aggregations import ALL_TIME, Distinct, LastN, Latest, RecencyWeighted, TimeSince, Window
from data.online.states.ratios import Ratios
from data.schema import EVENT_TIME, SOURCE_ROW
from data.temporal.cells import CellPlan, Input, Ratio
from data.views import Entity, FeatureView

A = TypeVar("A")

Words = npt.NDArray[np.int64]

MINUTE_US = 60_000_000
MICROSECOND = timedelta(microseconds=1)
NEVER_US = -(2**62)
"""The time of no event; as a tile's beginning, that of the tile of all that left every window."""

TILES, WORDS, LAYOUT, KNOWN_UNTIL, CLOCK = range(5)
"""Places of the header."""
HEADER_WORDS = 5


@dataclass(frozen=True)
class Summed:
    """A column of the tiles: what the events of a view add up to."""

    view: int
    of: Input


@dataclass(frozen=True)
class Counted:
    """A column of the tiles: how many distinct values of a column of a view were last met in the tile."""

    view: int
    column: str
    window: Window
    """The longest that asks for it: a value that left it can be forgotten."""


@dataclass(frozen=True)
class Decayed:
    """A recency-weighted sum of a view."""

    view: int
    feature: str
    aggregation: RecencyWeighted

    @property
    def half_life_us(self) -> int:
        """In µs."""
        return self.aggregation.half_life // MICROSECOND


@dataclass(frozen=True)
class Recents:
    """The newest events of a view that its sequences and latest values need."""

    view: int
    length: int
    columns: tuple[str, ...]
    """Besides event_time and source_row."""


class StateLayout:
    """The packed value of the entities that some views are about."""

    def __init__(self, entity: Entity, views: Sequence[FeatureView]) -> None:
        self.entity = entity
        self.views = tuple(view for view in views if view.entity == entity)
        self.plans = tuple(CellPlan(view) for view in self.views)

    @cached_property
    def identity(self) -> int:
        """Hash of the definitions, as a word. The code of the packing is in the fingerprint of a store's version."""
        definition = [view.definition() for view in self.views]
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Finite windows by length, all time last."""
        used = {ratio_window for plan in self.plans for ratio_window in plan.windows}
        used |= {each.window for view in self.views for each in view.features.values() if isinstance(each, Distinct)}
        return (*sorted(used - {ALL_TIME}, key=lambda window: window.length_us), ALL_TIME)

    @property
    def finite(self) -> tuple[Window, ...]:
        """The windows that begin somewhere."""
        return self.windows[:-1]

    @cached_property
    def summed(self) -> tuple[Summed, ...]:
        """The first columns of the tiles."""
        return tuple(Summed(view, each) for view, plan in enumerate(self.plans) for each in plan.inputs)

    @cached_property
    def counted(self) -> tuple[Counted, ...]:
        """The columns after them."""
        windows: dict[tuple[int, str], list[Window]] = {}
        for view, each in self._aggregations(Distinct):
            windows.setdefault((view, each.of), []).append(each.window)
        return tuple(
            Counted(view, column, max(used, key=self.windows.index)) for (view, column), used in windows.items()
        )

    @cached_property
    def inputs(self) -> int:
        """Columns of the tiles."""
        return len(self.summed) + len(self.counted)

    @cached_property
    def decayed(self) -> tuple[Decayed, ...]:
        """The recency-weighted sums."""
        return tuple(
            Decayed(index, feature, each)
            for index, view in enumerate(self.views)
            for feature, each in view.features.items()
            if isinstance(each, RecencyWeighted)
        )

    @cached_property
    def recents(self) -> tuple[Recents, ...]:
        """What is kept of the newest events, for each view that needs some."""
        lengths: dict[int, int] = {}
        columns: dict[int, dict[str, None]] = {}
        wanted = [(view, each.of, each.length) for view, each in self._aggregations(LastN)]
        for view, column, length in (*wanted, *((view, each.of, 1) for view, each in self._aggregations(Latest))):
            lengths[view] = max(lengths.get(view, 1), length)
            columns.setdefault(view, {}).update({} if column in (EVENT_TIME, SOURCE_ROW) else {column: None})
        return tuple(Recents(view, lengths[view], tuple(columns[view])) for view in sorted(lengths))

    @cached_property
    def latest(self) -> tuple[tuple[int, str], ...]:
        """(view, feature) of `Latest` values that are numbers."""
        return self._features(Latest)

    @cached_property
    def since(self) -> tuple[tuple[int, str], ...]:
        """(view, feature) of times since the newest event."""
        return self._features(TimeSince)

    @cached_property
    def ratios(self) -> tuple[tuple[int, Ratio], ...]:
        """(view, how it follows from the cells, window by window) of counts, sums, means, rates and distinct counts.

        Those that are divided by a cell come first, as `Ratios` wants them.
        """
        found: list[tuple[int, Ratio]] = []
        for view, plan in enumerate(self.plans):
            offset = next((place for place, each in enumerate(self.summed) if each.view == view), 0)
            found += [(view, self._moved(ratio, plan, offset)) for ratio in plan.ratios]
        columns = {(each.view, each.column): len(self.summed) + place for place, each in enumerate(self.counted)}
        for view, definition in enumerate(self.views):
            for feature, each in definition.features.items():
                if isinstance(each, Distinct):
                    cell = self.windows.index(each.window) * self.inputs + columns[view, each.of]
                    found.append((view, Ratio(feature, cell, None, 1.0, each.default)))
        return tuple(sorted(found, key=lambda each: each[1].below is None))

    @cached_property
    def finishing(self) -> Ratios:
        """What turns cells into features."""
        return Ratios([ratio for _, ratio in self.ratios])

    @cached_property
    def lifetime(self) -> timedelta | None:
        """How long after the newest event a state matters; None if for ever.

        Only where every view has a time to live and no feature would still count an older event after a new one.
        """
        ttls = [view.ttl for view in self.views if view.ttl is not None]
        lasting = [*self._aggregations(LastN), *self._aggregations(RecencyWeighted)]
        has_all_time = any(
            getattr(each, "window", None) == ALL_TIME for view in self.views for each in view.features.values()
        )
        if not ttls or len(ttls) < len(self.views) or lasting or has_all_time:
            return None
        return max([*ttls, *(window.length_us * MICROSECOND + window.hop for window in self.finite)])

    @cached_property
    def numbers(self) -> tuple[tuple[int, str], ...]:
        """(view, feature) of all features that are one number, in the order in which they are finished."""
        ratios = tuple((view, ratio.feature) for view, ratio in self.ratios)
        decayed = tuple((each.view, each.feature) for each in self.decayed)
        return (*ratios, *self.since, *decayed, *self.latest)

    @property
    def newest_at(self) -> int:
        """Place of the newest event of the first view."""
        return HEADER_WORDS

    @cached_property
    def decayed_at(self) -> int:
        """Place of the first recency-weighted sum."""
        return HEADER_WORDS + 2 * len(self.views)

    @cached_property
    def latest_at(self) -> int:
        """Place of the first latest number."""
        return self.decayed_at + len(self.decayed)

    @cached_property
    def head_words(self) -> int:
        """Words before the tiles."""
        return self.latest_at + len(self.latest)

    @cached_property
    def head(self) -> Words:
        """The places before the tiles."""
        return np.arange(self.head_words)

    def _moved(self, ratio: Ratio, plan: CellPlan, offset: int) -> Ratio:
        def moved(cell: int) -> int:
            window, place = divmod(cell, len(plan.inputs))
            return self.windows.index(plan.windows[window]) * self.inputs + offset + place

        below = None if ratio.below is None else moved(ratio.below)
        return Ratio(ratio.feature, moved(ratio.above), below, ratio.scale, ratio.default)

    def _aggregations(self, kind: type[A]) -> list[tuple[int, A]]:
        return [
            (index, each)
            for index, view in enumerate(self.views)
            for each in view.features.values()
            if isinstance(each, kind)
        ]

    def _features(self, kind: type) -> tuple[tuple[int, str], ...]:
        return tuple(
            (index, feature)
            for index, view in enumerate(self.views)
            for feature, each in view.features.items()
            if isinstance(each, kind) and view.is_scalar(feature)
        )
