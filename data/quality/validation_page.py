"""The report of a validation as one HTML page: no script, no outside file, readable on a phone, light and dark."""

from html import escape

from data.quality.column_card import column_card
from data.quality.validation_report import RuleResult, TableReport, ValidationReport

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1c2430; --quiet: #667085; --line: #e4e7ec;
  --bar: #3b6fd4; --before: #e07b1a; --ok: #157f4a; --quarantined: #a15c00; --failed: #c3261d }
@media (prefers-color-scheme: dark) { :root { --ground: #10141b; --card: #1a202a; --ink: #e6e9ef; --quiet: #94a0b3;
  --line: #2c3543; --bar: #6f9bf2; --before: #f0a04b; --ok: #4cc38a; --quarantined: #f0b153; --failed: #ff7b72 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem;
  background: var(--ground); color: var(--ink) }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere }
.note, .card dt, small { color: var(--quiet) } .note { margin: .25rem 0 1rem }
.verdict { font-weight: 600 } .ok { color: var(--ok) } .quarantined { color: var(--quarantined) }
.failed { color: var(--failed) }
header { display: flex; gap: .25rem 1rem; flex-wrap: wrap; align-items: baseline }
.card, .rules { background: var(--card); border: 1px solid var(--line); border-radius: .75rem }
.share { height: .5rem; border-radius: .25rem; overflow: hidden; background: var(--quarantined) }
.share b { display: block; height: 100%; background: var(--ok) }
.rules { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { padding: .4rem .9rem; text-align: right; vertical-align: top; font-variant-numeric: tabular-nums }
th { color: var(--quiet); font-weight: 500; font-size: .85rem }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 9rem }
tr + tr { border-top: 1px solid var(--line) } td small { display: block } td .verdict { display: inline }
h2 .verdict { font-size: 1rem; margin-left: .4rem } .card .note { margin: .5rem 0 }
summary { cursor: pointer; padding: .5rem .9rem; color: var(--quiet) }
details.card { margin-top: .75rem } details pre { margin: 0 .9rem .9rem; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: .75rem }
.card { padding: .9rem } details.card { padding: 0 } .card header { justify-content: space-between; gap: .5rem }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: .2rem .8rem; margin: .5rem 0; font-size: .85rem }
dt { font-size: .75rem } dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--quiet); font-size: 10px }
.bar { fill: var(--bar) } .before { fill: none; stroke: var(--before); stroke-width: 1.5 }
.value { display: grid; grid-template-columns: minmax(0, 3fr) 3fr 3.2rem; gap: .6rem; font-size: .85rem;
  align-items: center }
.value span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.value span:last-child { text-align: right; color: var(--quiet); font-variant-numeric: tabular-nums }
.track { position: relative; height: .6rem } .track b, .track i { position: absolute; top: 0; bottom: 0 }
.track b { background: var(--bar); border-radius: 2px } .track i { border-left: 2px solid var(--before) }
.axis { stroke: var(--line) } .legend { font-size: .75rem } .legend b { color: var(--bar) }
.legend i { color: var(--before); font-style: normal }
@media (max-width: 40rem) { .wide { display: none } th, td { padding: .4rem .5rem } }
"""


def validation_page(report: ValidationReport) -> str:
    """The page. Whatever comes from data or from a configuration is escaped."""
    tables = "".join(_table(name, table) for name, table in report.tables.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Validation of {escape(report.dataset)}</title><style>{STYLE}</style></head><body>
<header><h1>{escape(report.dataset)}</h1>{_verdict(report.verdict)}</header>
<p class="note">validated {report.validated:%Y-%m-%d %H:%M} UTC</p>
{tables}
</body></html>
"""


def _table(name: str, table: TableReport) -> str:
    if not table.rows_read:
        return f'<h2>{escape(name)}</h2><p class="note">no rows</p>'
    width = table.rows_good / table.rows_read
    cards = "".join(
        column_card(column, summary, table.references.get(column)) for column, summary in table.columns.items()
    )
    return f"""<h2>{escape(name)} {_verdict(table.verdict)}</h2>
<div class="share"><b style="width:{width:.2%}"></b></div>
<p class="note">{table.rows_read:,} rows read: {table.rows_good:,} good, {table.rows_broken:,} in quarantine.
Broken: {table.broken_share:.2%}, at most {table.max_broken_share:.0%} may be.</p>
{_rules([rule for rule in table.rules if rule.broken or rule.detail or rule.verdict != "ok"])}
{"".join(_examples(rule) for rule in table.rules if rule.examples)}
{_quiet([rule for rule in table.rules if not (rule.broken or rule.detail or rule.verdict != "ok")])}
<h2>{escape(name)}: columns</h2><div class="cards">{cards}</div>"""


def _verdict(verdict: str) -> str:
    return f'<small class="verdict {verdict}">{verdict}</small>'


def _rules(rules: list[RuleResult]) -> str:
    if not rules:
        return ""
    rows = "".join(
        f"<tr><td>{escape(rule.rule)}{f'<small>{escape(rule.detail)}</small>' if rule.detail else ''}</td>"
        f"<td>{_verdict(rule.verdict)}</td>{_numbers(rule)}</tr>"
        for rule in rules
    )
    heads = '<th>expected</th><th>verdict</th><th>broken</th><th>share</th><th class="wide">rows</th>'
    return f'<div class="rules"><table><tr>{heads}</tr>{rows}</table></div>'


def _numbers(rule: RuleResult) -> str:
    limit = f"<small>at most {rule.limit:.2%}</small>" if rule.limit is not None else ""
    broken = f"<td>{rule.broken:,}</td><td>{rule.share:.2%}{limit}</td>" if not rule.detail else "<td></td><td></td>"
    return f'{broken}<td class="wide">{rule.checked:,}</td>'


def _examples(rule: RuleResult) -> str:
    lines = "\n".join(f"line {example.line}: {example.reason}\n{example.row}\n" for example in rule.examples)
    return (
        f'<details class="card"><summary>{escape(rule.rule)}: {rule.broken:,} in quarantine</summary>'
        f"<pre>{escape(lines)}</pre></details>"
    )


def _quiet(rules: list[RuleResult]) -> str:
    names = "\n".join(rule.rule for rule in rules)
    return (
        f'<details class="card"><summary>{len(rules)} rules hold for every row</summary><pre>{escape(names)}</pre>'
        "</details>"
        if rules
        else ""
    )
