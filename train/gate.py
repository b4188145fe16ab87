"""The gate that a variant passes on its way to `champion`: a pure function of what was measured of it.

The first champion of a data set has to meet the absolute conditions. Whoever follows must be better than the present
champion, asked the same questions, by more than chance explains: a tie changes nothing. What was not measured counts
as failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from data.schema import USER_ID
from train.bootstrap import paired_bootstrap
from train.evaluation import Evaluation
from train.ledger import Check, GateReport
from train.pair_figures import CALIBRATION, LATENCY
from train.user_values import MODEL, PROTOCOL_HASH, SEGMENTS, metrics_in, models_in, paired_test

PAIR = "two_tower_ranker"
"""The two-tower with the ranker, among the models of an evaluation."""


class GateConfig(BaseModel):
    """What is asked of a variant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field("ndcg@10", min_length=1)
    """What decides."""

    over_popularity: NonNegativeFloat = 1.0
    """The two-tower must reach this multiple of popularity's metric."""

    max_segment_loss: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the champion's metric that a segment of users or items may lose; what chance explains is no loss."""

    min_segment_users: Annotated[int, Field(ge=2)] = 20
    """A segment of fewer users is too small to judge."""

    min_new_users: Annotated[int, Field(ge=2)] = 50
    """A champion of an earlier version of the data is asked only for what came later, and by as many users at least."""

    max_calibration_error: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Expected calibration error of the ranker."""

    max_latency_ms: PositiveFloat = 100.0
    """95th percentile of retrieving and ranking for one user in one thread, as measured where it was trained."""


@dataclass(frozen=True)
class Measured:
    """What is known of a variant."""

    variant: str
    data_version: str
    evaluation: Evaluation
    values: pl.DataFrame
    """Of `train.user_values`: the values by user that the evaluation's figures are means of."""


def judge(
    challenger: Measured,
    champion: Measured | None,
    config: GateConfig,
    unusable: str | None = None,
    *,
    asked_alike: Measured | None = None,
    incomparable: str | None = None,
) -> GateReport:
    """Whether `challenger` may become champion.

    `champion` is None where there is nothing to compare with; `unusable` says so of a champion that there is, but that
    cannot be served any more: it is no bar to one that can. `asked_alike`: the challenger on the questions of
    `champion`, where those are not all of its own (`train.common_questions`); `incomparable`: why there are none.
    """
    compared = asked_alike or challenger
    checks = absolute_checks(challenger.evaluation, config)
    comparable = True
    if unusable is not None:
        checks.append(
            Check(words=f"nothing to compare with, for the champion cannot be served: {unusable}", passed=True)
        )
    if champion is not None:
        same = same_questions(compared, f"champion {champion.variant}", champion, incomparable)
        comparable = same.passed
        checks += [same, *(_relative(compared, champion, config) if comparable else ())]
        checks += limits(challenger.evaluation.figures, config)
    return GateReport(
        variant=challenger.variant,
        against=champion.variant if champion else None,
        comparable=comparable,
        protocol_hash=compared.evaluation.protocol_hash,
        protocol=compared.evaluation.protocol,
        data_version=compared.data_version,
        checks=tuple(checks),
    )


def absolute_checks(evaluation: Evaluation, config: GateConfig | None = None) -> list[Check]:
    """What the models are held to whoever is champion: better than popularity, and a ranker that pays."""
    asked = config or GateConfig()
    figures, metric = evaluation.figures, asked.metric
    popularity, two_tower = figures.get(f"{metric}/popularity"), figures.get(f"{metric}/two_tower")
    if popularity is None or two_tower is None:
        return [Check(words=f"{metric} of the two-tower and of popularity: not measured", passed=False)]
    ratio = two_tower / popularity if popularity else float("inf")
    label = metric.upper() if metric.startswith("ndcg") else metric
    found = [
        Check(
            words=f"two-tower {label} {two_tower:.4f} is {ratio:.2f} x popularity's {popularity:.4f}; "
            f"at least {asked.over_popularity:g} x is asked for",
            passed=two_tower > 0 and ratio >= asked.over_popularity,
        )
    ]
    if f"{metric}/{PAIR}" in figures:
        ranked = figures[f"{metric}/{PAIR}"]
        interval = evaluation.intervals.get(f"{metric}/{PAIR}")
        highest = ranked if interval is None else interval.high
        words = f"two-tower + ranker {label} {ranked:.4f} must not fall below the two-tower's {two_tower:.4f}"
        if ranked < two_tower <= highest:
            words += f", beyond what chance explains (its 95 % interval goes up to {highest:.4f})"
        found.append(Check(words=words, passed=highest >= two_tower))
    return found


def same_questions(one: Measured, name: str, other: Measured, why_not: str | None = None) -> Check:
    """Whether two variants were measured by one protocol on one version of the data.

    `name`: what to call the other; `why_not`: why they could not be measured alike, if that was tried.
    """
    ours, theirs = one.evaluation.protocol_hash, other.evaluation.protocol_hash
    data, others = one.data_version[:12], other.data_version[:12]
    because = f" ({why_not})" if why_not else ""
    if data != others:
        words = f"measured on data version {data}, {name} on {others}: not comparable{because}"
        return Check(words=words, passed=False)
    if ours != theirs:
        words = f"measured by protocol {ours}, {name} by protocol {theirs}: not comparable{because}"
        return Check(words=words, passed=False)
    return Check(words=f"measured as {name}: protocol {ours}, data version {data}", passed=True)


def limits(figures: Mapping[str, float], config: GateConfig) -> list[Check]:
    """Calibration and latency within their bounds."""
    return [
        _within(figures, CALIBRATION, config.max_calibration_error, "calibration error"),
        _within(figures, LATENCY, config.max_latency_ms, "95th percentile of the latency for one user, in ms,"),
    ]


def _within(figures: Mapping[str, float], name: str, bound: float, label: str) -> Check:
    value = figures.get(f"{name}/{PAIR}")
    if value is None:
        return Check(words=f"{label} was not measured; at most {bound:g} is asked for", passed=False)
    return Check(words=f"{label} {value:.4g}; at most {bound:g} is asked for", passed=value <= bound)


def _relative(challenger: Measured, champion: Measured, config: GateConfig) -> list[Check]:
    """Better in all, and nowhere much worse."""
    measured = [_values_of(measured, config.metric) for measured in (challenger, champion)]
    if any(values is None for values in measured):
        return [Check(words=f"{config.metric} by user: not measured for both; needed to compare", passed=False)]
    together = pl.concat([values for values in measured if values is not None], how="diagonal")
    test = paired_test(together, challenger.variant, champion.variant, config.metric)
    interval = test.difference
    better = Check(
        words=f"{config.metric} is {interval.mean:+.4f} against champion {champion.variant} (95 % interval "
        f"{interval.low:+.4f} to {interval.high:+.4f}, {test.users} users); all of it above zero is asked for",
        passed=interval.low > 0,
    )
    return [better, *_segments(together, challenger.variant, champion.variant, config)]


def _values_of(measured: Measured, metric: str) -> pl.DataFrame | None:
    """A variant's values, under its name; None where they are missing."""
    values = measured.values
    if PAIR not in models_in(values) or metric not in metrics_in(values):
        return None
    return values.filter(pl.col(MODEL) == PAIR).with_columns(pl.lit(measured.variant).alias(MODEL))


def _segments(together: pl.DataFrame, challenger: str, champion: str, config: GateConfig) -> list[Check]:
    """One condition per segment that is large enough, of users and of items."""
    of_users = sorted(together[SEGMENTS].explode().drop_nulls().unique())
    of_items = [name for name in metrics_in(together) if name.startswith(f"{config.metric}/")]
    parts = {name: (together.filter(pl.col(SEGMENTS).list.contains(name)), config.metric) for name in of_users}
    parts |= {name.removeprefix(f"{config.metric}/"): (together, name) for name in of_items}
    found = []
    for name, (part, metric) in parts.items():
        both = _paired(part, challenger, champion, metric)
        if both.height >= config.min_segment_users:
            found.append(_segment(name, both, config))
    if not found:
        words = f"segments: none of {config.min_segment_users} users or more was measured"
        return [Check(words=words, passed=False)]
    return found


def _paired(part: pl.DataFrame, challenger: str, champion: str, metric: str) -> pl.DataFrame:
    """The values of both (`new`, `old`) of each question that has them."""
    keys = [USER_ID, PROTOCOL_HASH]
    new, old = (
        part.filter(pl.col(MODEL) == model).select(*keys, pl.col(metric).alias(name)).drop_nans(name).drop_nulls(name)
        for model, name in ((challenger, "new"), (champion, "old"))
    )
    return new.join(old, on=keys)


def _segment(name: str, both: pl.DataFrame, config: GateConfig) -> Check:
    """Worse is what loses more than the bound with an interval below zero: in small segments chance alone loses it."""
    new, old = (both[column].to_numpy() for column in ("new", "old"))
    interval = paired_bootstrap(new, old, both[USER_ID])
    lost = interval.high < 0 and -interval.mean > config.max_segment_loss * old.mean()
    return Check(
        words=f"segment {name} ({both.height} users): {config.metric} {interval.mean:+.4f} against {old.mean():.4f} "
        f"(95 % interval {interval.low:+.4f} to {interval.high:+.4f}); no loss over {config.max_segment_loss:.0%} is "
        "asked for",
        passed=not lost,
        segment=name,
    )
