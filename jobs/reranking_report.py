"""What an evaluation of re-ranking shows: a table, the finding in words, figures and a picture."""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from data.splits import TEST, VALIDATION
from jobs.evaluation_tables import TextTable, interval_text, number_text
from train.bootstrap import Interval, bootstrap
from train.reranking import Bucket, Threshold, best_weight

if TYPE_CHECKING:
    from jobs.reranking import RerankingDecision, RerankingMeasurements


def table_of(split: str, measurements: "RerankingMeasurements") -> TextTable:
    """NDCG@10 without the language model and the gain of each weight, by known events."""
    heads = ["known events", "users", "reordered", "ndcg@10", *(f"gain, weight {w:g}" for w in measurements.weights)]
    rows = [
        [
            str(bucket.known_events),
            f"{len(bucket.users):,}",
            f"{bucket.reordered:,}",
            number_text(float(bucket.without_N.mean())),
            *(interval_text(bucket.gain(weight)) for weight in range(len(measurements.weights))),
        ]
        for bucket in measurements.buckets[split]
    ]
    title = f"Re-ranking by the language model on the {split} events; protocol {measurements.protocol.hash}"
    return TextTable(title, heads, rows)


def words_of(
    validation: Sequence[Bucket], weights: Sequence[float], threshold: Threshold | None, confirmed: Interval | None
) -> str:
    """The finding in a sentence. `confirmed`: the gain up to the threshold on the test events."""
    if threshold is None or confirmed is None:
        weight = best_weight(validation, len(weights))
        fewest = min(validation, key=lambda bucket: bucket.known_events)
        return (
            f"off: no weight helps on the validation events with {fewest.known_events} known events (the best weight, "
            f"{weights[weight]:g}, gains {interval_text(fewest.gain(weight))} NDCG@10 there), so nobody is re-ranked"
        )
    found = (
        f"weight {weights[threshold.weight]:g} helps on the validation events up to {threshold.known_events} known "
        f"events, and gains {interval_text(confirmed)} NDCG@10 on the test events"
    )
    if confirmed.low <= 0:
        return f"off: {found}, which does not confirm it, so nobody is re-ranked"
    return f"on: {found}, so users with fewer than {threshold.known_events + 1} events are re-ranked"


def figures_of(measurements: "RerankingMeasurements", decision: "RerankingDecision") -> dict[str, float]:
    """`ndcg@10/with_llm/events_1` and the like are of the test events, with the weight that `weight` names."""
    threshold, weights = decision.threshold, measurements.weights
    chosen = best_weight(measurements.buckets[VALIDATION], len(weights)) if threshold is None else threshold.weight
    figures: dict[str, float] = {
        "below_events": 0 if threshold is None else threshold.known_events + 1,
        "weight": weights[chosen],
    }
    for bucket in measurements.buckets[TEST]:
        name = f"events_{bucket.known_events}"
        figures[f"ndcg@10/without_llm/{name}"] = float(bucket.without_N.mean())
        figures[f"ndcg@10/with_llm/{name}"] = float(bucket.with_NW[:, chosen].mean())
        figures |= _with_bounds(f"gain/{name}", bucket.gain(chosen))
        figures[f"users/{name}"] = len(bucket.users)
        figures[f"reordered/{name}"] = bucket.reordered
    for split, buckets in measurements.buckets.items():
        for bucket in buckets:
            for number, weight in enumerate(weights):
                name = f"gain/{split}/weight_{weight:g}/events_{bucket.known_events}"
                figures |= _with_bounds(name, bucket.gain(number))
    everything = [bucket for buckets in measurements.buckets.values() for bucket in buckets]
    if reordered := sum(bucket.reordered for bucket in everything):
        figures["seconds/reordered_question"] = sum(bucket.seconds for bucket in everything) / reordered
    return figures


def draw_gains(measurements: "RerankingMeasurements") -> bytes:
    """A PNG: for each split NDCG@10 by known events, without the language model and with each weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (split, buckets) in zip(figure.subplots(1, 2, sharey=True), measurements.buckets.items(), strict=True):
        for place, (label, intervals) in enumerate(_lines(buckets, measurements.weights)):
            means = [interval.mean for interval in intervals]
            bounds = [
                [interval.mean - interval.low for interval in intervals],
                [interval.high - interval.mean for interval in intervals],
            ]
            shifted = [number + 0.08 * place for number in range(len(buckets))]
            axes.errorbar(shifted, means, yerr=bounds, marker="o", markersize=4, capsize=2, linewidth=1, label=label)
        axes.set_xticks(range(len(buckets)), [str(bucket.known_events) for bucket in buckets])
        axes.set(title=f"{split} events, protocol {measurements.protocol.hash}", xlabel="known events")
    figure.axes[0].set_ylabel("ndcg@10, 95 % interval")
    figure.axes[0].legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _lines(buckets: Sequence[Bucket], weights: Sequence[float]) -> Iterator[tuple[str, list[Interval]]]:
    yield "without the language model", [bootstrap(bucket.without_N, bucket.users) for bucket in buckets]
    for number, weight in enumerate(weights):
        yield f"weight {weight:g}", [bootstrap(bucket.with_NW[:, number], bucket.users) for bucket in buckets]


def _with_bounds(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}/low": interval.low, f"{name}/high": interval.high}
