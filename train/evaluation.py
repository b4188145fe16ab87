"""How good any recommender is: the same questions, metrics, intervals and segments for each, by one protocol.

A recommender is asked for lists of `LIST_LENGTH`, some users at a time, and only values per user are kept: what an
evaluation holds in memory does not grow with the catalogue times the users.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from data.schema import USER_ID
from train.bootstrap import Interval, PairedTest, bootstrap_columns
from train.cases import Cases
from train.index import Codes
from train.list_values import SHOWN, ListValues
from train.metrics.accuracy import is_among
from train.metrics.catalogue import coverage, exposures, gini
from train.protocols import LIST_LENGTH, EvaluationProtocol
from train.recommender import Recommends
from train.segments import HEAD, TAIL, user_segments
from train.user_values import MODEL, PROTOCOL_HASH, SEGMENTS, metrics_in, models_in, paired_test
from train.vocabulary import UNKNOWN

Values = npt.NDArray[np.float64]

USERS_AT_ONCE = 1024
SCORES_AT_ONCE = 2**25
"""Users times items that a recommender is asked to score at once at most."""
FEW_USERS = 100


class SegmentFigures(BaseModel):
    """The main metrics over a part of the users, or over the right answers of a part of the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int
    intervals: dict[str, Interval]
    """`<metric>/<model>` to mean and 95 % interval."""


class TargetCounts(BaseModel):
    """The right answers, and those that are hard or impossible to give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    all: int
    untrained: int
    """No training event has the item: what learns from events alone cannot tell it from others like it."""
    unknown: int
    """The vocabulary does not know the item: a miss for everybody."""
    met_before: int
    """The user met the item before, so that it is masked: a miss for everybody."""


class Evaluation(BaseModel):
    """Metrics by model, and how they were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    """The protocol in words."""
    protocol_hash: str
    """Its hash."""
    users: int
    """Users that were tested."""
    figures: dict[str, float]
    """`<metric>/<model>` to value."""
    intervals: dict[str, Interval] = {}
    """`<metric>/<model>` to mean and 95 % interval, for metrics that are means over users."""
    segments: dict[str, SegmentFigures] = {}
    """Segment to its figures; a user is in several."""
    tests: tuple[PairedTest, ...] = ()
    """Every pair of models, by the protocol's first metric."""
    targets: TargetCounts | None = None
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know, a sentence each."""


@dataclass(frozen=True)
class Measurements:
    """An evaluation with all values it is made from."""

    protocol: EvaluationProtocol
    values: pl.DataFrame
    """As `train.user_values` describes them."""
    catalogue: Mapping[str, float]
    """`<metric>/<model>` to value, for metrics of all lists together."""
    targets: TargetCounts

    @cached_property
    def evaluation(self) -> Evaluation:
        """Means, intervals, segments and tests of the values."""
        measured = {model: _Model(self, model) for model in models_in(self.values)}
        figures: dict[str, float] = {}
        segments: dict[str, dict[str, Interval]] = {}
        for model, each in measured.items():
            figures |= {f"{metric}/{model}": interval.mean for metric, interval in each.intervals.items()}
            figures |= {name: value for name, value in self.catalogue.items() if name.partition("/")[2] == model}
            for segment, intervals in each.segments.items():
                named = {f"{metric}/{model}": interval for metric, interval in intervals.items()}
                segments.setdefault(segment, {}).update(named)
        users = self.values[USER_ID].n_unique()
        first = self.protocol.main_metrics[0]
        pairs = combinations(measured, 2)
        return Evaluation(
            protocol=self.protocol.words,
            protocol_hash=self.protocol.hash,
            users=users,
            figures=figures,
            intervals={f"{metric}/{m}": each for m, of in measured.items() for metric, each in of.intervals.items()},
            segments={
                name: SegmentFigures(users=self._users_of(name), intervals=intervals)
                for name, intervals in segments.items()
            },
            tests=tuple(paired_test(self.values, a, b, first) for a, b in pairs),
            targets=self.targets,
            notes=tuple(_notes(users, self.targets, metrics_in(self.values))),
        )

    def _users_of(self, segment: str) -> int:
        return self.values.filter(is_in_segment(segment, self.protocol))[USER_ID].n_unique()


def is_in_segment(segment: str, protocol: EvaluationProtocol) -> pl.Expr:
    """Whether a row of values belongs to a segment; to head or tail, if a right answer does."""
    if segment in (HEAD, TAIL):
        return pl.col(f"{protocol.main_metrics[0]}/{segment}").is_not_nan()
    return pl.col(SEGMENTS).list.contains(segment)


class _Model:
    """The intervals of one model, all from one set of draws."""

    def __init__(self, measurements: Measurements, model: str) -> None:
        values = measurements.values.filter(pl.col(MODEL) == model)
        protocol = measurements.protocol
        columns = {("", name): values[name].to_numpy() for name in metrics_in(values) if "/" not in name}
        named = values[SEGMENTS].explode().drop_nulls().unique().sort()
        for segment in (*named, HEAD, TAIL):
            is_in_N = values.select(is_in_segment(segment, protocol)).to_series().to_numpy()
            for metric in protocol.main_metrics:
                column = f"{metric}/{segment}" if segment in (HEAD, TAIL) else metric
                columns[segment, metric] = np.where(is_in_N, values[column].to_numpy(), np.nan)
        columns = {name: column for name, column in columns.items() if not np.isnan(column).all()}
        intervals = bootstrap_columns(np.column_stack(list(columns.values())), values[USER_ID])
        self.intervals: dict[str, Interval] = {}
        self.segments: dict[str, dict[str, Interval]] = {}
        for (segment, metric), interval in zip(columns, intervals, strict=True):
            (self.segments.setdefault(segment, {}) if segment else self.intervals)[metric] = interval


def evaluate(recommenders: Mapping[str, Recommends], cases: Cases, items: pl.DataFrame) -> Evaluation:
    """Ask every recommender the same questions and say how well it answers. See `measure`."""
    return measure(recommenders, cases, items).evaluation


def measure(recommenders: Mapping[str, Recommends], cases: Cases, items: pl.DataFrame) -> Measurements:
    """Ask every recommender the same questions; keeps the values of each. `items`: the catalogue.

    Raises:
        TowerlineError: a recommender names an item twice, one that is excluded, or one that there is not.
    """
    worth = ListValues(cases, items)
    num_items = cases.vocabulary.num_items
    segments = user_segments(cases)
    frames: list[pl.DataFrame] = []
    catalogue: dict[str, float] = {}
    for name, recommender in recommenders.items():
        parts: list[dict[str, Values]] = []
        shown_I = np.zeros(num_items, dtype=np.int64)
        for some in _chunks(len(cases), num_items):
            ranked_BK = _ask(name, recommender, cases, some)
            parts.append(worth.of(ranked_BK, some))
            shown_I += exposures(ranked_BK[:, :SHOWN], num_items)
        columns = {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
        frames.append(
            cases.rows.select(
                USER_ID, pl.lit(cases.protocol.hash).alias(PROTOCOL_HASH), pl.lit(name).alias(MODEL), segments
            ).with_columns(pl.Series(metric, values) for metric, values in columns.items())
        )
        catalogue[f"coverage@{SHOWN}/{name}"] = coverage(shown_I)
        if shown_I.any():
            catalogue[f"gini@{SHOWN}/{name}"] = gini(shown_I)
    return Measurements(cases.protocol, pl.concat(frames), catalogue, count_targets(cases))


def _chunks(count: int, num_items: int) -> Iterator[slice]:
    size = max(1, min(USERS_AT_ONCE, SCORES_AT_ONCE // num_items))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _ask(name: str, recommender: Recommends, cases: Cases, some: slice) -> Codes:
    """The lists, if they keep to what was asked: a figure of anything else would be wrong without a sign of it."""
    rows, exclude = cases.rows[some], cases.exclude[some]
    ranked_BK = recommender.recommend(rows, exclude, LIST_LENGTH)
    if ranked_BK.ndim != 2 or len(ranked_BK) != rows.height or ranked_BK.shape[1] > LIST_LENGTH:
        raise TowerlineError(
            f"{name} gave an array of shape {ranked_BK.shape}, expected {LIST_LENGTH} items for {rows.height} users"
        )
    is_item_BK = ranked_BK != UNKNOWN
    ordered_BK = np.sort(ranked_BK, axis=1)
    is_twice_BK = (ordered_BK[:, 1:] == ordered_BK[:, :-1]) & (ordered_BK[:, 1:] != UNKNOWN)
    for wrong, what in (
        ((ranked_BK < 0) | (ranked_BK > cases.vocabulary.num_items), "an item that there is not"),
        (is_twice_BK, "an item twice"),
        (is_among(ranked_BK, exclude) & is_item_BK, "an item that was excluded"),
    ):
        if wrong.any():
            user = rows[USER_ID][int(wrong.any(axis=1).argmax())]
            raise TowerlineError(f"{name} recommends {what} to user {user!r}; its figures would mean nothing")
    return ranked_BK


def count_targets(cases: Cases) -> TargetCounts:
    """The right answers of these questions."""
    targets = np.concatenate(cases.targets)
    met = [
        np.isin(codes, known) & (codes != UNKNOWN) for codes, known in zip(cases.targets, cases.exclude, strict=True)
    ]
    return TargetCounts(
        all=len(targets),
        untrained=int((cases.training.events_I[targets] == 0).sum()),
        unknown=int((targets == UNKNOWN).sum()),
        met_before=int(np.concatenate(met).sum()),
    )


def _notes(users: int, targets: TargetCounts, metrics: list[str]) -> Iterator[str]:
    if users < FEW_USERS:
        yield f"{users} users are few: intervals of so small a sample are rough"
    if targets.untrained:
        yield f"{targets.untrained} of {targets.all} right answers are items without a training event"
    if targets.unknown:
        yield f"{targets.unknown} of {targets.all} right answers are unknown to the vocabulary and count as misses"
    if targets.met_before:
        yield f"{targets.met_before} of {targets.all} right answers were met before, are masked and count as misses"
    if f"diversity@{SHOWN}" not in metrics:
        yield "no item has attributes, so there is no diversity and no calibration"
