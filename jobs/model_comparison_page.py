"""Registered variants side by side as one HTML page. No script, no outside file."""

import base64
import html

from cluster.reports import Report
from jobs.evaluation_page import html_table
from jobs.model_comparison import Comparison, tables_of
from jobs.report_page import STYLE, draw_curves
from train.card import KINDS, ModelCard
from train.loop import EpochResult


def comparison_page(report: Report, comparison: Comparison) -> str:
    """The page: tables, the curves of every training, and what was left out."""
    evaluation = comparison.contestants[0].measured.evaluation
    remarks = "".join(f"<li>{html.escape(line)}</li>" for line in (*evaluation.notes, *comparison.left_out))
    curves = "".join(
        f"<h3>{kind}</h3>\n"
        f'<img alt="loss and NDCG@10 of the {kind} by epoch" src="data:image/png;base64,{_curves(comparison, kind)}">\n'
        for kind in KINDS
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Towerline: {html.escape(report.name)}</title>
<style>{STYLE} body {{ max-width: 80rem }}</style></head><body>
<h1>{html.escape(report.name)}: {html.escape(comparison.contestants[0].pair.dataset)}</h1>
<p class="note">{report.started:%Y-%m-%d %H:%M} UTC, commit {html.escape(report.git_commit)}</p>
<p>Protocol <code>{evaluation.protocol_hash}</code>: {html.escape(evaluation.protocol)}</p>
{"".join(html_table(table) for table in tables_of(comparison) if table.rows)}
<h2>Training</h2>
{curves}<ul class="note">{remarks}</ul>
</body></html>
"""


def _curves(comparison: Comparison, kind: str) -> str:
    cards = {each.label: card for each in comparison.contestants for name, card in each.cards.items() if name == kind}
    return base64.b64encode(draw_curves({label: epochs_of(card) for label, card in cards.items()})).decode()


def epochs_of(card: ModelCard) -> list[EpochResult]:
    """The epochs of a card's curve, as they were when it was written."""
    return [
        EpochResult.model_validate(
            {name: value for name, value in epoch.items() if name in EpochResult.model_fields}
            | {"metrics": {name: value for name, value in epoch.items() if name not in EpochResult.model_fields}}
        )
        for epoch in card.curve
    ]
