"""An evaluation as one HTML page: pictures of the intervals, and the tables. No script, no outside file."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.reports import Report
from jobs.evaluation_tables import TextTable, models_in, segments_of, tables_of
from jobs.report_page import STYLE
from train.bootstrap import Interval
from train.evaluation import Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS_DRAWN = 4
"""The best ones, by segment: more cannot be told apart."""


def evaluation_page(report: Report, measurements: Measurements, left_out: Sequence[str]) -> str:
    """The page. `left_out`: a sentence for each model that was not evaluated."""
    evaluation = measurements.evaluation
    picture = base64.b64encode(draw_evaluation(measurements)).decode()
    run = report.model_dump_json(indent=2, include={"config", "versions", "machine"})
    remarks = "".join(f"<li>{html.escape(line)}</li>" for line in (*evaluation.notes, *left_out))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Towerline: {html.escape(report.name)}</title>
<style>{STYLE} body {{ max-width: 80rem }}</style></head><body>
<h1>{html.escape(report.name)}</h1>
<p class="note">{report.started:%Y-%m-%d %H:%M} UTC, commit {html.escape(report.git_commit)},
data {html.escape(report.data_version[:12])}</p>
<p>Protocol <code>{evaluation.protocol_hash}</code>: {html.escape(evaluation.protocol)}</p>
<img alt="{html.escape(measurements.protocol.main_metrics[0])} by model and by segment, with 95 % intervals"
src="data:image/png;base64,{picture}">
{"".join(html_table(table) for table in tables_of(measurements))}
<ul class="note">{remarks}</ul>
<h2>Configuration</h2><pre>{html.escape(run)}</pre>
</body></html>
"""


def draw_evaluation(measurements: Measurements) -> bytes:
    """A PNG: the first main metric of every model on the left, of the best ones by segment on the right."""
    from matplotlib.figure import Figure

    evaluation, metric = measurements.evaluation, measurements.protocol.main_metrics[0]
    models, segments = models_in(evaluation, metric), segments_of(evaluation)
    height = 1.5 + 0.3 * max(len(models), len(segments))
    figure = Figure(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    _draw(left, models, [evaluation.intervals[f"{metric}/{model}"] for model in models], "", 0)
    left.set(title=f"{metric}, protocol {evaluation.protocol_hash}")
    drawn = models[:MODELS_DRAWN]
    for number, model in enumerate(drawn):
        found = [evaluation.segments[segment].intervals.get(f"{metric}/{model}") for segment in segments]
        _draw(right, segments, found, model, (number - (len(drawn) - 1) / 2) * 0.8 / len(drawn))
    right.set(title=f"{metric} by segment")
    if drawn and segments:
        right.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _draw(axes: "Axes", names: Sequence[str], intervals: Sequence[Interval | None], label: str, shift: float) -> None:
    """A dot with its interval per name, the first on top."""
    found = [(place, each) for place, each in enumerate(intervals) if each is not None]
    means = [each.mean for _, each in found]
    reach = [[each.mean - each.low for _, each in found], [each.high - each.mean for _, each in found]]
    axes.errorbar(means, [place + shift for place, _ in found], xerr=reach, fmt="o", capsize=2, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="x")


def html_table(table: TextTable) -> str:
    """The table under its title."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h2>{html.escape(table.title)}</h2>\n<table><tr>{heads}</tr>{rows}</table>\n"
