"""An export as one table, for the console and for the page, and as a picture."""

import base64
import html
import io
from collections.abc import Sequence

from cluster.reports import Report
from jobs.evaluation_page import html_table
from jobs.evaluation_tables import TextTable, interval_text
from jobs.exporting import Outcome
from jobs.report_page import STYLE


def table_of(outcome: Outcome) -> TextTable:
    """A row per runtime: what it keeps, and what it costs."""
    measured = outcome.measurements
    mark = f"protocol {measured.protocol.hash}, {measured.evaluation.users:,} users" if measured else "not measured"
    heads = ["runtime", "NDCG@10", "loss of NDCG@10, 95 %", "overlap@10", "size, MB", "users/s, batch", "p50, ms"]
    rows = []
    for name, cost in outcome.costs.items():
        quality = outcome.qualities.get(name)
        rows.append(
            [
                name,
                f"{quality.ndcg.mean:.4f}" if quality else "",
                interval_text(quality.loss if quality else None),
                f"{cost.overlap:.3f}",
                f"{cost.size_mb:.3f}",
                f"{cost.users_per_s:,.0f}",
                f"{cost.p50_ms:.3f}",
            ]
        )
    return TextTable(f"Exported; NDCG: {mark}", heads, rows)


def export_page(report: Report, outcome: Outcome, remarks: Sequence[str]) -> str:
    """The page: picture and table. No script, no outside file."""
    picture = base64.b64encode(draw_export(outcome)).decode()
    run = report.model_dump_json(indent=2, include={"config", "versions", "machine"})
    said = "".join(f"<li>{html.escape(line)}</li>" for line in remarks)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Towerline: {html.escape(report.name)}</title>
<style>{STYLE} body {{ max-width: 80rem }}</style></head><body>
<h1>{html.escape(report.name)}</h1>
<p class="note">{report.started:%Y-%m-%d %H:%M} UTC, commit {html.escape(report.git_commit)},
data {html.escape(report.data_version[:12])}, variant {html.escape(outcome.source.pair.variant)}</p>
<img alt="loss of NDCG@10, size and latency by runtime" src="data:image/png;base64,{picture}">
{html_table(table_of(outcome))}
<ul class="note">{said}</ul>
<h2>Configuration</h2><pre>{html.escape(run)}</pre>
</body></html>
"""


def draw_export(outcome: Outcome) -> bytes:
    """A PNG: loss of NDCG@10 with its interval, size, and the median for one user, a row per runtime."""
    from matplotlib.figure import Figure

    names = list(outcome.costs)
    figure = Figure(figsize=(13, 1.6 + 0.4 * len(names)), layout="constrained")
    quality, size, latency = figure.subplots(1, 3, sharey=True)
    losses = [(place, found.loss) for place, name in enumerate(names) if (found := outcome.qualities.get(name))]
    for place, loss in losses:
        if loss is not None:
            reach = [[loss.mean - loss.low], [loss.high - loss.mean]]
            quality.errorbar([loss.mean], [place], xerr=reach, fmt="o", capsize=3, color="tab:blue")
    quality.axvline(0, color="black", linewidth=0.8)
    quality.set(title="loss of NDCG@10 against torch" if losses else "NDCG@10 was not measured")
    size.barh(range(len(names)), [cost.size_mb for cost in outcome.costs.values()])
    size.set(title="size, MB")
    latency.barh(range(len(names)), [cost.p50_ms for cost in outcome.costs.values()])
    latency.set(title="median for one user, ms")
    quality.set_yticks(range(len(names)), names)
    quality.set_ylim(len(names) - 0.5, -0.5)
    for axes in (quality, size, latency):
        axes.grid(alpha=0.3, axis="x")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
