"""An evaluation as tables of text, for the console and for the page. The protocol's hash heads every one."""

from collections.abc import Iterable
from dataclasses import dataclass

from train.bootstrap import Interval
from train.evaluation import Evaluation, Measurements

OTHER_METRICS = (
    "mrr", "map@10", "hit_rate@10", "recall@100",
    "coverage@10", "gini@10", "novelty@10", "diversity@10", "miscalibration@10",
)  # fmt: skip
"""Beside the protocol's main ones; of the last one less is better."""


@dataclass(frozen=True)
class TextTable:
    """Rows of cells; the first of each names the row."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    @property
    def width(self) -> int:
        """Characters of a line in which no cell is folded."""
        columns = zip(self.heads, *self.rows, strict=True)
        return 2 + sum(3 + max(map(len, cells)) for cells in columns)


def tables_of(measurements: Measurements) -> list[TextTable]:
    """Models, segments and pairs of models."""
    evaluation, main = measurements.evaluation, measurements.protocol.main_metrics
    mark = f"protocol {evaluation.protocol_hash}, {evaluation.users:,} users"
    return [
        _with_intervals(evaluation, main, mark),
        _others(evaluation, [name for name in OTHER_METRICS if name not in main], mark),
        _segments(evaluation, main[0], mark),
        _tests(evaluation, mark),
    ]


def models_in(evaluation: Evaluation, metric: str) -> list[str]:
    """The models that have a metric, the best first."""
    found = {name.partition("/")[2]: value for name, value in evaluation.figures.items() if _metric(name) == metric}
    return sorted(found, key=lambda model: -found[model])


def segments_of(evaluation: Evaluation) -> list[str]:
    """Segments of the catalogue and of how much is known of a user first, then the attributes by name."""
    first = [name for name in evaluation.segments if "=" not in name]
    return first + sorted(name for name in evaluation.segments if "=" in name)


def _with_intervals(evaluation: Evaluation, metrics: Iterable[str], mark: str) -> TextTable:
    metrics = list(metrics)
    rows = [
        [model, *(interval_text(evaluation.intervals.get(f"{metric}/{model}")) for metric in metrics)]
        for model in models_in(evaluation, metrics[0])
    ]
    return TextTable(f"Mean and 95 % interval; {mark}", ["model", *metrics], rows)


def _others(evaluation: Evaluation, metrics: Iterable[str], mark: str) -> TextTable:
    shown = [metric for metric in metrics if models_in(evaluation, metric)]
    rows = [
        [model, *(number_text(evaluation.figures.get(f"{metric}/{model}")) for metric in shown)]
        for model in models_in(evaluation, "ndcg@10")
    ]
    return TextTable(f"Further metrics; {mark}", ["model", *shown], rows)


def _segments(evaluation: Evaluation, metric: str, mark: str) -> TextTable:
    models = models_in(evaluation, metric)
    rows = []
    for name in segments_of(evaluation):
        segment = evaluation.segments[name]
        cells = [interval_text(segment.intervals.get(f"{metric}/{model}")) for model in models]
        rows.append([name, f"{segment.users:,}", *cells])
    return TextTable(f"{metric} by segment; {mark}", ["segment", "users", *models], rows)


def _tests(evaluation: Evaluation, mark: str) -> TextTable:
    rows = [
        [f"{test.a} - {test.b}", interval_text(test.difference), f"{test.p_value:.4f}", f"{test.users:,}"]
        for test in evaluation.tests
    ]
    metric = evaluation.tests[0].metric if evaluation.tests else ""
    return TextTable(f"Paired differences; {mark}", ["pair", metric, "p", "users"], rows)


def _metric(name: str) -> str:
    return name.partition("/")[0]


def interval_text(interval: Interval | None) -> str:
    """A mean and its interval; nothing for what was not measured."""
    return "" if interval is None else f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def number_text(value: float | None) -> str:
    """A figure; nothing for what was not measured."""
    return "" if value is None else f"{value:.4f}"
