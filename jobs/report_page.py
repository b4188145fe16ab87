"""A training report as one HTML page: the comparison, the curves, the requests. No script, no outside file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from cluster.reports import Report
from jobs.console import METRICS, models_of
from jobs.speed import speed_figures
from train.evaluation import Evaluation
from train.loop import EpochResult

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1rem; overflow: auto } .note { color: #666 }
"""


def report_page(
    report: Report,
    evaluation: Evaluation,
    curves: Mapping[str, Sequence[EpochResult]],
    answers: Sequence[str],
) -> str:
    """The page. `curves`: training to its epochs; `answers`: what the endpoint said, as plain text."""
    rows = "".join(
        f"<tr><td>{html.escape(model)}</td>"
        + "".join(f"<td>{evaluation.figures[f'{metric}/{model}']:.4f}</td>" for metric in METRICS)
        + "</tr>"
        for model in models_of(evaluation)
    )
    heads = "".join(f"<th>{metric}</th>" for metric in METRICS)
    speeds = speed_figures(curves)
    speed = "<br>".join(
        f"{html.escape(name)}: {speeds[f'samples_per_s/{name}']:,.0f} examples/s, "
        f"{speeds[f'data_wait/{name}']:.1%} of the time waiting for data"
        for name in curves
    )
    replies = "".join(f"<pre>{html.escape(answer)}</pre>" for answer in answers)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Towerline: {html.escape(report.name)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(report.name)}</h1>
<p class="note">{report.started:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s, commit {html.escape(report.git_commit)},
data {html.escape(report.data_version[:12])}</p>
<h2>Comparison</h2>
<table><tr><th>model</th>{heads}</tr>{rows}</table>
<p class="note">{evaluation.users:,} users; protocol {evaluation.protocol_hash}: {html.escape(evaluation.protocol)}</p>
<h2>Training</h2>
<img alt="loss and NDCG@10 by epoch" src="data:image/png;base64,{base64.b64encode(draw_curves(curves)).decode()}">
<p class="note">{speed}</p>
<h2>Requests</h2>{replies}
<h2>Configuration</h2><pre>{html.escape(report.model_dump_json(indent=2))}</pre>
</body></html>
"""


def draw_curves(curves: Mapping[str, Sequence[EpochResult]]) -> bytes:
    """A PNG: loss on the left, NDCG@10 on the validation events, where it was measured, on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    loss, ndcg = figure.subplots(1, 2)
    for name, epochs in curves.items():
        numbers = [epoch.epoch + 1 for epoch in epochs]
        loss.plot(numbers, [epoch.loss for epoch in epochs], marker="o", label=name)
        measured = [epoch.metrics["ndcg@10"] for epoch in epochs if "ndcg@10" in epoch.metrics]
        if measured:
            ndcg.plot(numbers, measured, marker="o", label=name)
    for axes, title in ((loss, "training loss"), (ndcg, "NDCG@10, validation events")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
