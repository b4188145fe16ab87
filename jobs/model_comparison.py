"""Registered variants side by side: what to show of each, as tables of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.schema import USER_ID
from jobs.evaluation_tables import TextTable, interval_text, number_text, segments_of
from train.bootstrap import Interval, paired_bootstrap
from train.card import KINDS, Kind, ModelCard
from train.common_questions import Candidate, on_common_questions
from train.gate import PAIR, GateConfig, Measured, same_questions
from train.ledger import read_ledger
from train.registry import RegisteredPair, find_pair, registered_pairs
from train.user_values import MODEL, PROTOCOL_HASH, metrics_in

NAME_LENGTH = 8
"""Characters of a variant's name that are shown."""

MOST = 6
"""Variants that are compared unless they are named."""


@dataclass(frozen=True)
class Contestant:
    """One variant."""

    pair: RegisteredPair
    cards: Mapping[Kind, ModelCard]
    measured: Measured
    is_champion: bool

    @property
    def label(self) -> str:
        """The beginning of its name."""
        return self.pair.variant[:NAME_LENGTH] + (" (champion)" if self.is_champion else "")


@dataclass(frozen=True)
class Comparison:
    """Variants that were measured by one protocol on one version of the data."""

    contestants: Sequence[Contestant]
    """The one that the others are compared with first."""
    left_out: Sequence[str]
    """A sentence for each variant that could not be compared."""


def compare(settings: Settings, dataset: str, names: Sequence[str]) -> Comparison:
    """The variants of these names, or the newest and the champion where there are none; the champion first.

    Variants that were measured on several versions of the data are asked again for what none of them has seen.

    Raises:
        TowerlineError: one of those named cannot be read or compared with the first; there is none.
    """
    tracking_uri = settings.tracking_uri
    champion = read_ledger(tracking_uri, dataset).champion
    pairs = [find_pair(tracking_uri, dataset, name) for name in dict.fromkeys(names)]
    pairs = pairs or _newest(tracking_uri, dataset, champion)
    found: list[Candidate] = []
    left_out: list[str] = []
    for pair in sorted(pairs, key=lambda pair: pair.variant != champion):
        try:
            found.append(Candidate.read(tracking_uri, pair))
        except TowerlineError as error:
            if names:
                raise
            left_out.append(f"variant {pair.variant} is left out: {error}")
    measured, why_not = _measured_alike(settings, found)
    contestants: list[Contestant] = []
    for candidate, each in zip(found, measured, strict=True):
        try:
            _require_comparable(each, contestants, why_not)
        except TowerlineError as error:
            if names:
                raise
            left_out.append(f"variant {each.variant} is left out: {error}")
        else:
            contestants.append(Contestant(candidate.pair, candidate.cards, each, each.variant == champion))
    if not contestants:
        raise TowerlineError(f"no variant of data set {dataset!r} can be compared; {'; '.join(left_out)}")
    return Comparison(contestants, left_out)


def tables_of(comparison: Comparison) -> list[TextTable]:
    """Where each comes from, how well it does, where it does well, and what its configuration changes."""
    contestants, first = comparison.contestants, comparison.contestants[0]
    mark = f"protocol {first.measured.evaluation.protocol_hash}, {first.measured.evaluation.users:,} users"
    return [
        _origins(contestants),
        _metrics(contestants, mark),
        _differences(contestants, mark),
        _segments(contestants, mark),
        _configurations(contestants),
    ]


def _newest(tracking_uri: str, dataset: str, champion: str | None) -> list[RegisteredPair]:
    pairs = registered_pairs(tracking_uri, dataset)
    if not pairs:
        raise TowerlineError(
            f"the registry at {tracking_uri} has no variant of data set {dataset!r}; "
            f"`python -m jobs.train_ranking --dataset {dataset}` registers one"
        )
    return pairs[:MOST] + [pair for pair in pairs[MOST:] if pair.variant == champion]


def _measured_alike(settings: Settings, found: Sequence[Candidate]) -> tuple[list[Measured], str | None]:
    """The variants on questions that all of them can be asked, or as they were registered, and why not."""
    as_registered = [each.measured for each in found]
    if all(same_questions(each, "", as_registered[0]).passed for each in as_registered):
        return as_registered, None
    try:
        least = GateConfig().min_new_users
        return on_common_questions(settings.tracking_uri, settings.home, found, least), None
    except TowerlineError as error:
        return as_registered, str(error)


def _require_comparable(measured: Measured, contestants: Sequence[Contestant], why_not: str | None) -> None:
    if contestants:
        first = contestants[0].measured
        same = same_questions(measured, first.variant, first, why_not)
        if not same.passed:
            raise TowerlineError(f"variant {measured.variant} was {same.words}; name variants measured alike")


def _origins(contestants: Sequence[Contestant]) -> TextTable:
    rows = [["variant", *(each.pair.variant for each in contestants)]]
    for kind in KINDS:
        rows.append([f"{kind} version", *(each.pair.versions[kind] for each in contestants)])
    cards = [each.cards["two-tower"] for each in contestants]
    rows.append(["data version", *(card.data_version[:12] for card in cards)])
    rows.append(["commit", *(card.git_commit for card in cards)])
    rows.append(["scaling", *(", ".join(f"{name} {value}" for name, value in card.scaling.items()) for card in cards)])
    return TextTable("Where they come from", ["", *_labels(contestants)], rows)


def _metrics(contestants: Sequence[Contestant], mark: str) -> TextTable:
    """Of the two-tower with the ranker: with an interval where a metric is a mean over users."""
    names = [name for each in contestants for name in each.measured.evaluation.figures if name.endswith(f"/{PAIR}")]
    rows = []
    for name in dict.fromkeys(names):
        cells = []
        for each in contestants:
            interval = each.measured.evaluation.intervals.get(name)
            value = each.measured.evaluation.figures.get(name)
            cells.append(number_text(value) if interval is None else interval_text(interval))
        rows.append([name.partition("/")[0], *cells])
    return TextTable(f"Two-tower + ranker, mean and 95 % interval; {mark}", ["metric", *_labels(contestants)], rows)


def _differences(contestants: Sequence[Contestant], mark: str) -> TextTable:
    """Every metric by user of the others less the first's, question by question."""
    first, *others = contestants
    old = _values(first)
    rows = []
    for metric in (name for name in metrics_in(old) if "/" not in name):
        cells = [interval_text(_difference(_values(each), old, metric)) for each in others]
        rows.append([metric, *cells])
    title = f"Paired differences to {first.label}, with 95 % intervals; {mark}"
    return TextTable(title, ["metric", *_labels(others)], rows if others else [])


def _values(contestant: Contestant) -> pl.DataFrame:
    return contestant.measured.values.filter(pl.col(MODEL) == PAIR)


def _difference(new: pl.DataFrame, old: pl.DataFrame, metric: str) -> Interval | None:
    if metric not in new.columns:
        return None
    both = new.join(old, on=[USER_ID, PROTOCOL_HASH], suffix="_old").drop_nans([metric, f"{metric}_old"])
    if both[USER_ID].n_unique() < 2:
        return None
    return paired_bootstrap(both[metric].to_numpy(), both[f"{metric}_old"].to_numpy(), both[USER_ID])


def _segments(contestants: Sequence[Contestant], mark: str) -> TextTable:
    metric = GateConfig().metric
    evaluations = [each.measured.evaluation for each in contestants]
    rows = []
    for name in dict.fromkeys(name for each in evaluations for name in segments_of(each)):
        segments = [each.segments.get(name) for each in evaluations]
        users = next(segment.users for segment in segments if segment is not None)
        intervals = [segment.intervals.get(f"{metric}/{PAIR}") if segment else None for segment in segments]
        cells = [interval_text(interval) for interval in intervals]
        rows.append([name, f"{users:,}", *cells])
    return TextTable(f"{metric} by segment; {mark}", ["segment", "users", *_labels(contestants)], rows)


def _configurations(contestants: Sequence[Contestant]) -> TextTable:
    """What differs; `-` where a variant has no such setting."""
    flat = [
        {f"{kind}.{name}": value for kind, card in each.cards.items() for name, value in _flat(card.config).items()}
        for each in contestants
    ]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [[name, *(each.get(name, "-") for each in flat)] for name in names]
    changed = [row for row in rows if len(set(row[1:])) > 1]
    return TextTable("Configuration, where it differs", ["setting", *_labels(contestants)], changed)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return flat


def _labels(contestants: Sequence[Contestant]) -> list[str]:
    return [each.label for each in contestants]
