"""The point-in-time join: features of entities as of past moments, exactly as they could be known then.

A key asks for the features of one entity at a moment: (entity id, event_time, source_row). What it sees of the events
is settled in `data.temporal.visibility`. Everything here is whole-array arithmetic over the sorted events of one
bucket; only integers are added up, so that no order of rows and no way to cut events into buckets changes a result.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data.aggregations import Count, Distinct, LastN, Latest, Mean, Rate, RecencyWeighted, Sum, TimeSince
from data.schema import EVENT_TIME, INGEST_TIME, SOURCE_ROW
from data.temporal.cells import CellPlan, decayed_weights
from data.temporal.decay import decayed_sums
from data.temporal.distinct import distinct_counts
from data.temporal.timeline import Integers, Sorted, Timeline, encode, sort_moments
from data.temporal.visibility import Visibility, visibility
from data.views import FeatureView

Mask = npt.NDArray[np.bool_]
_POSITION = "_position"
_MICROSECOND = timedelta(microseconds=1)


def features_at(view: FeatureView, events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """The keys, in their order, with the features of a view. See `features_of`."""
    return features_of((view,), events, keys)


def features_of(views: Sequence[FeatureView], events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """The keys, in their order, with the features of views that share one entity.

    `events` have the columns of the contract, each event once; `keys` have the entity's column, `event_time` and
    `source_row`. Both in any order, fastest sorted by (entity, event_time, source_row).
    """
    past, asked = _sorted_moments(events, keys, views[0].entity.key)
    ordered = past.frame(events).with_row_index(_POSITION)
    columns: dict[str, pl.Series] = {}
    seen = _visible(past.timeline, asked.timeline, ordered)
    for view in views:
        prepared = view.prepared(ordered)
        mine = seen
        if view.where is not None:
            positions = prepared.get_column(_POSITION).to_numpy().astype(np.int64)
            mine = _visible(past.timeline.take(positions), asked.timeline, prepared)
        columns |= _Features(view, prepared, mine).columns()
    return keys.hstack(asked.restored(pl.DataFrame(columns)))


def _sorted_moments(events: pl.DataFrame, keys: pl.DataFrame, entity_key: str | None) -> tuple[Sorted, Sorted]:
    if entity_key is None:
        codes, entities = [np.zeros(frame.height, dtype=np.int64) for frame in (events, keys)], 1
    else:
        codes, entities = encode(events.get_column(entity_key), keys.get_column(entity_key))
    past, asked = (
        sort_moments(code, _micros(frame, EVENT_TIME), frame.get_column(SOURCE_ROW).to_numpy(), entities)
        for code, frame in zip(codes, (events, keys), strict=True)
    )
    return past, asked


def _visible(events: Timeline, keys: Timeline, ordered: pl.DataFrame) -> Visibility:
    return visibility(events, keys, _micros(ordered, INGEST_TIME))


def _micros(frame: pl.DataFrame, column: str) -> Integers:
    return frame.get_column(column).dt.epoch("us").to_numpy()


def _is_known(seen: Visibility, ttl: timedelta | None) -> Mask:
    """Whether each key sees an event that is not older than the time to live."""
    is_known = seen.newest >= 0
    if ttl is None or not len(seen.events):
        return is_known
    return is_known & (seen.keys.times - seen.events.times[seen.newest] <= ttl // _MICROSECOND)


def _gather(columns: pl.DataFrame, positions: Integers) -> pl.DataFrame:
    """Rows at some positions; nulls at -1."""
    if columns.is_empty():
        return columns.clear(len(positions))
    wanted = pl.Series(positions)
    return columns.select(pl.all().gather(wanted.set(wanted < 0, None)))


class _Features:
    """The features of one view at sorted keys."""

    def __init__(self, view: FeatureView, events: pl.DataFrame, seen: Visibility) -> None:
        self._view, self._events, self._seen = view, events, seen
        self._known = _is_known(seen, view.ttl)

    def columns(self) -> dict[str, pl.Series]:
        """Feature → its values, in the order of the view."""
        columns = self._from_cells() | self._sequences()
        for name, aggregation in self._view.features.items():
            match aggregation:
                case Distinct(of, window):
                    values = distinct_counts(self._seen, self._events.get_column(of), window)
                    columns[name] = self._numbers(name, values)
                case RecencyWeighted(half_life, of):
                    weights = decayed_weights(self._events, of)
                    columns[name] = self._numbers(name, decayed_sums(self._seen, weights, half_life // _MICROSECOND))
                case TimeSince():
                    columns[name] = self._numbers(name, self._age() / 1e6)
                case Latest(of):
                    columns[name] = self._latest(of, aggregation.default).alias(name)
                case Count() | Sum() | Mean() | Rate() | LastN():
                    pass
        return {name: columns[name] for name in self._view.features}

    def _numbers(self, name: str, values: npt.NDArray[Any]) -> pl.Series:
        """Values with the default where nothing is known, as the type of the feature."""
        if not self._known.all():
            values = np.where(self._known, values, self._view.features[name].default)
        return pl.Series(name, values).cast(self._view.dtype(name))

    def _from_cells(self) -> dict[str, pl.Series]:
        plan = CellPlan(self._view)
        cells = self._cells(plan)
        return {ratio.feature: self._numbers(ratio.feature, ratio.finish(cells)) for ratio in plan.ratios}

    def _cells(self, plan: CellPlan) -> list[Integers]:
        """Cell → its keys: running totals up to each key's slice of events, less those before it and the late ones."""
        seen = self._seen
        cells: dict[int, Integers] = {}
        begins = {window: seen.begin(window) for window in plan.windows}
        for each in plan.inputs:
            added = None if each.is_one(self._events) else each.of(self._events)
            totals = None if added is None else np.concatenate([[0], np.cumsum(added)])
            for window in plan.windows:
                begin = begins[window]
                cell = seen.stop - begin if totals is None else totals[seen.stop] - totals[begin]
                cell -= seen.missing(window, added)
                cells[plan.index(window, each)] = cell
        return [cells[index] for index in range(len(cells))]

    def _age(self) -> Integers:
        """µs since the newest event."""
        if not len(self._seen.events):
            return np.zeros(len(self._seen.keys), dtype=np.int64)
        return self._seen.keys.times - self._seen.events.times[self._seen.newest]

    def _latest(self, column: str, default: Any) -> pl.Series:
        values = _gather(self._events.select(column), np.where(self._known, self._seen.newest, -1)).to_series()
        if default is None:
            return values
        known, otherwise = pl.lit(pl.Series(self._known)), pl.lit(default, dtype=values.dtype)
        return values.to_frame().select(pl.when(known).then(column).otherwise(otherwise)).to_series()

    def _sequences(self) -> dict[str, pl.Series]:
        wanted = {name: each for name, each in self._view.features.items() if isinstance(each, LastN)}
        columns: dict[str, pl.Series] = {}
        for length in {each.length for each in wanted.values()}:
            names = [name for name, each in wanted.items() if each.length == length]
            sources = {wanted[name].of: self._events.get_column(wanted[name].of) for name in names}
            lists = self._last(length, sources)
            columns |= {name: lists[wanted[name].of].alias(name) for name in names}
        return columns

    def _last(self, length: int, sources: dict[str, pl.Series]) -> dict[str, pl.Series]:
        """The newest values of columns, per key, as lists."""
        parts = {name: [column.implode().clear()] for name, column in sources.items()}
        for positions, offsets in self._seen.last(length, self._known):
            for name, column in sources.items():
                values = column.gather(pl.Series(positions)).to_arrow(compat_level=pl.CompatLevel.newest())
                lists = pa.LargeListArray.from_arrays(offsets, values)
                parts[name].append(pl.Series(name, lists, dtype=pl.List(column.dtype)))
        return {name: pl.concat(part) for name, part in parts.items()}
