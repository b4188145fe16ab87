"""Leakage is a test: whatever an example could not know is changed, and its features must stay as they are.

    report = check_leakage(my_view, label=pl.col("value") >= 4)
    report.require_none()

Events are generated from a seed: several users and items, ties in time, late arrivals. Every event is an example. All
that an example must not see is changed in turn: its own event (the label's columns, then the others), events after
it, events of its past that were not ingested yet. A feature of it or of an earlier example that changes has looked
there: of a view, say, with a column that compares an event with the mean of all.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from cluster.errors import TowerlineError
from data.checks.generated_events import generate_events, literals_in
from data.schema import EVENT_ID, EVENT_TIME, INGEST_TIME, ITEM_ID, SOURCE_ROW, USER_ID, VALUE
from data.temporal.point_in_time import features_at
from data.views import EVENT_TYPES, FeatureView

Computation = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""(events, keys) → the keys, in their order, with features. A key: user_id, item_id, event_time, source_row."""

KEY_COLUMNS = [USER_ID, ITEM_ID, EVENT_TIME, SOURCE_ROW]
LABEL = pl.col(VALUE)
EXAMPLES_BETWEEN_CHANGES = 3
"""What one example cannot see, no earlier one can: each change is a test of all examples up to it."""


@dataclass(frozen=True)
class Leak:
    """A feature that changed with something that its example could not know."""

    feature: str
    change: str
    """What was changed."""
    columns: tuple[str, ...]
    """Columns of events that it takes to change the feature; empty if events came or went."""
    key: dict[str, Any]
    """The example."""
    before: str
    after: str
    events: pl.DataFrame
    """The smallest set of events found that shows it, before the change."""

    def __str__(self) -> str:
        what = f" ({', '.join(self.columns)})" if self.columns else ""
        return (
            f"feature {self.feature!r} leaks: for user {self.key[USER_ID]!r}, item {self.key[ITEM_ID]!r} at "
            f"{self.key[EVENT_TIME].isoformat()} (source_row {self.key[SOURCE_ROW]}) it was {self.before}, and "
            f"{self.after} after a change of {self.change}{what}, which that example cannot know; "
            f"seen with {self.events.height} events"
        )


@dataclass(frozen=True)
class LeakageReport:
    """What a check found."""

    name: str
    features: tuple[str, ...]
    examples: int
    """Examples that were compared, over all changes."""
    leaks: tuple[Leak, ...]
    """One of each feature that has any, of the plainest kind."""
    untested: tuple[str, ...]
    """Features that are the same for every example, whatever was changed."""

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words."""
        return [*map(str, self.leaks), *map(_untested, self.untested)]

    def require_none(self) -> None:
        """Raise TowerlineError if a feature leaks, or if nothing can be said about one."""
        if self.leaks:
            raise TowerlineError(
                f"{self.name}: {self.leaks[0]}. A feature may use events before (event_time, source_row) of the "
                "example that were ingested by then; compute it with data.temporal.point_in_time.features_at"
            )
        if self.untested:
            raise TowerlineError(f"{self.name}: {_untested(self.untested[0])}")


def check_leakage(
    features: FeatureView | Computation, label: pl.Expr = LABEL, seed: int = 0, events: int = 40
) -> LeakageReport:
    """Change, for every example, all that it cannot know, and find the features that change with it.

    `label` is what the example is trained to predict, an expression over its own event. `events` are made so that they
    have the values that a view's expressions name: `pl.col("event_type") == "purchase"` brings purchases.
    """
    compute = functools.partial(features_at, features) if isinstance(features, FeatureView) else features
    literals = literals_in(_expressions(features)) if isinstance(features, FeatureView) else {}
    generated, other = (generate_events(events, each, literals) for each in (seed, seed + 1))
    keys = generated.select(KEY_COLUMNS)
    names = tuple(name for name in compute(generated, keys).columns if name not in KEY_COLUMNS)
    check = _Check(compute, keys)
    plain = check.features(generated).select(names)
    found: dict[str, _Found] = {}
    examples = 0
    for position in range(0, keys.height, EXAMPLES_BETWEEN_CHANGES):
        for order, (change, after) in enumerate(_changes(generated, other, position, label)):
            changed = check.features(after)
            examples += position + 1
            for name in names:
                if name not in found or order < found[name].order:
                    example = _first_difference(plain[name], changed[name], position + 1)
                    if example is not None:
                        found[name] = _Found(order, change, example, after)
    name = features.name if isinstance(features, FeatureView) else getattr(features, "__name__", "features")
    leaks = tuple(check.shrunk(generated, found[feature], feature) for feature in names if feature in found)
    untested = tuple(feature for feature in names if feature not in found and _is_same_everywhere(plain[feature]))
    return LeakageReport(name, names, examples, leaks, untested)


def lint_views(views: Iterable[FeatureView], label: pl.Expr = LABEL) -> pl.DataFrame:
    """A row per view: view, features, examples compared, leaks and what was not tested ("" if nothing)."""
    reports = [check_leakage(view, label) for view in views]
    return pl.DataFrame(
        {
            "view": [report.name for report in reports],
            "features": [len(report.features) for report in reports],
            "examples": [report.examples for report in reports],
            "leaks": ["; ".join(report.faults) for report in reports],
        },
        schema={"view": pl.String, "features": pl.Int64, "examples": pl.Int64, "leaks": pl.String},
    )


def _expressions(view: FeatureView) -> list[pl.Expr]:
    return [*view.columns.values(), *([] if view.where is None else [view.where])]


def _untested(feature: str) -> str:
    return (
        f"nothing was tested: feature {feature!r} is its default everywhere, for no generated event counts for it; "
        "generate more (check_leakage(…, events=400)), or check the view with a wider `where`"
    )


def _is_same_everywhere(values: pl.Series) -> bool:
    return len(set(map(repr, values.to_list()))) <= 1


def _changes(
    events: pl.DataFrame, other: pl.DataFrame, position: int, label: pl.Expr
) -> Iterator[tuple[str, pl.DataFrame]]:
    """(what was changed, the changed events), each change invisible to the example at `position`.

    What is changed or added is taken from `other` events.
    """
    at = events.item(position, EVENT_TIME)
    row = pl.int_range(pl.len())
    is_own, is_later, is_unknown = row == position, row > position, (row < position) & (pl.col(INGEST_TIME) > at)
    of_label = label.meta.root_names()
    contents = [USER_ID, ITEM_ID, "event_type", VALUE, "decision_id"]
    yield "its own label", _replaced(events, other, is_own, of_label)
    yield "its own event", _replaced(events, other, is_own, contents)
    yield "its own event: taken away", events.filter(~is_own)
    yield "later events", _replaced(events, other, is_later, contents)
    yield "later events: taken away", events.filter(~is_later)
    yield "later events: moved on", events.with_columns(_moved([EVENT_TIME, INGEST_TIME], is_later))
    yield "events not ingested yet", _replaced(events, other, is_unknown, contents)
    yield "events not ingested yet: taken away", events.filter(~is_unknown)
    yield "events not ingested yet: ingested later still", events.with_columns(_moved([INGEST_TIME], is_unknown))
    just_after = pl.lit(at).dt.offset_by("1us")
    added = other.with_columns(
        ("new-" + pl.col(EVENT_ID)).alias(EVENT_ID),
        pl.col(SOURCE_ROW) + events.height,
        pl.max_horizontal(INGEST_TIME, just_after).alias(INGEST_TIME),
    )
    yield "events it cannot see: more of them", pl.concat([events, added])


def _replaced(events: pl.DataFrame, other: pl.DataFrame, where: pl.Expr, columns: list[str]) -> pl.DataFrame:
    """Columns of some events with other values: every number differs, and texts that happen to be equal get longer."""
    fresh = {name: pl.when(other[name] == events[name]).then(_unlike(name)).otherwise(other[name]) for name in columns}
    return events.with_columns(pl.when(where).then(fresh[name]).otherwise(name).alias(name) for name in columns)


def _unlike(column: str) -> pl.Expr:
    return pl.col(column) + (pl.lit("'") if EVENT_TYPES[column] == pl.String else pl.lit(7))


def _moved(columns: list[str], where: pl.Expr) -> list[pl.Expr]:
    return [pl.when(where).then(pl.col(name).dt.offset_by("40d")).otherwise(name).alias(name) for name in columns]


@dataclass(frozen=True)
class _Found:
    """A change that changed a feature of the example at a position."""

    order: int
    """Place of the change among the kinds of change, the plainest first."""
    change: str
    position: int
    after: pl.DataFrame


@dataclass(frozen=True)
class _Check:
    """Compares the features of one example before and after a change."""

    compute: Computation
    keys: pl.DataFrame

    def features(self, events: pl.DataFrame) -> pl.DataFrame:
        """The features of all examples, as they would be if these had been the events."""
        return self.compute(events, self.keys)

    def shrunk(self, before: pl.DataFrame, found: _Found, feature: str) -> Leak:
        """The leak with as few events and changed columns as needed to show it."""
        position, after = found.position, found.after
        for event_id in dict.fromkeys([*before[EVENT_ID], *after[EVENT_ID]]):
            fewer = [events.filter(pl.col(EVENT_ID) != event_id) for events in (before, after)]
            if self._differs(fewer[0], fewer[1], position, feature):
                before, after = fewer
        columns: list[str] = []
        if before[EVENT_ID].equals(after[EVENT_ID]):
            for name in before.columns:
                reverted = after.with_columns(before[name])
                after = reverted if self._differs(before, reverted, position, feature) else after
            columns = [name for name in before.columns if not before[name].equals(after[name])]
        one, two = (_value(self.features(events), position, feature) for events in (before, after))
        return Leak(feature, found.change, tuple(columns), self.keys.row(position, named=True), one, two, before)

    def _differs(self, before: pl.DataFrame, after: pl.DataFrame, position: int, feature: str) -> bool:
        one, two = (_value(self.features(events), position, feature) for events in (before, after))
        return one != two


def _first_difference(before: pl.Series, after: pl.Series, count: int) -> int | None:
    """The first of some examples whose features differ; NaN equals NaN."""
    one, two = before.head(count), after.head(count)
    if one.equals(two):
        return None
    pairs = zip(one.to_list(), two.to_list(), strict=True)
    return next((example for example, pair in enumerate(pairs) if repr(pair[0]) != repr(pair[1])), None)


def _value(features: pl.DataFrame, position: int, feature: str) -> str:
    """What an example has, written out: so that NaN equals NaN."""
    value = features.item(position, feature)
    return repr(value.to_list() if isinstance(value, pl.Series) else value)
