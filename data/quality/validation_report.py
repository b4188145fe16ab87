"""The result of validation: each rule with what became of it, each column with what it holds.

A job adds up the `Findings` of its chunks, in any order, concludes once, and stops if the report says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import TowerlineError
from cluster.files import write_atomically
from data.expectations import TABLES, DatasetExpectations, Expectations, TableName
from data.quality.distribution import kolmogorov_smirnov, population_stability_index, reference_column
from data.quality.findings import Findings
from data.quality.rules import RowRule
from data.quality.statistics import ColumnSummary
from data.quality.table_rules import AnyRule, Distribution, Fresh, NullShare, RowCount, Unique

JSON_FILE = "validation.json"
HTML_FILE = "validation.html"
DELIVERED_TWICE = "duplicate event"
"""The rule of events that were there before. Sources that deliver at least once bring some: no reason to stop."""

Verdict = Literal["ok", "quarantined", "failed"]
STYLES: dict[Verdict, str] = {"ok": "green", "quarantined": "yellow", "failed": "bold red"}


class Example(BaseModel):
    """A broken row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: int
    reason: str
    row: str


class RuleResult(BaseModel):
    """What became of one rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    expect: str
    """Kind of the rule; `read` for rows that could not be read at all."""
    checked: int
    """Rows it was checked on."""
    broken: int
    share: float
    """`broken` of `checked`."""
    limit: float | None = None
    """Share of broken rows that stops the job, where the rule has a limit of its own."""
    verdict: Verdict
    detail: str = ""
    """What was found, for rules about the table as a whole."""
    examples: tuple[Example, ...] = ()


class TableReport(BaseModel):
    """What became of one table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_read: int
    rows_good: int
    rows_broken: int
    """All that went to quarantine."""
    broken_share: float
    """Of the rows read, repeated deliveries aside: what `max_broken_share` is about."""
    max_broken_share: float
    verdict: Verdict
    rules: tuple[RuleResult, ...]
    columns: dict[str, ColumnSummary]
    """Statistics of the good rows."""
    references: dict[str, ColumnSummary]
    """What a `Distribution` compared a column with."""


class ValidationReport(BaseModel):
    """The result of validation. `validation.json` beside a version of a data set is this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    validated: datetime
    verdict: Verdict
    tables: dict[str, TableReport]

    def raise_if_failed(self) -> None:
        """Raise TowerlineError, naming rule, share and limit, if anything passed its limit."""
        for name, table in self.tables.items():
            if table.verdict == "failed":
                raise TowerlineError(f"{self.dataset}: {_why_failed(name, table)}")

    def write(self, folder: Path) -> None:
        """Write `validation.json` and `validation.html`."""
        from data.quality.validation_page import validation_page

        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / JSON_FILE, text)
        write_atomically(folder / HTML_FILE, validation_page(self))


def read_validation(path: Path) -> ValidationReport | None:
    """The report in a `validation.json`; None if there is none. Raises TowerlineError if it is something else."""
    try:
        return ValidationReport.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise TowerlineError(f"{path} is no report of a validation ({reason}); delete it, or ingest again") from error


def conclude(
    expectations: DatasetExpectations,
    findings: Mapping[TableName, Findings],
    *,
    dataset: str,
    now: datetime,
    previous: ValidationReport | None = None,
) -> ValidationReport:
    """What became of every rule of the tables in `findings` (leave out a table that the source does not bring).

    `previous`: the report of the version before this one, for `reference = "previous"`. Raises TowerlineError for a
    reference that cannot be read; call `raise_if_failed` for the verdict.
    """
    tables = {
        table: _Conclusion(table, getattr(expectations, table), findings[table], now, previous).table()
        for table in TABLES
        if table in findings
    }
    verdict = _worst(*(table.verdict for table in tables.values()))
    return ValidationReport(dataset=dataset, validated=now, verdict=verdict, tables=tables)


@dataclass(frozen=True)
class _Conclusion:
    """About one table."""

    name: TableName
    expectations: Expectations
    findings: Findings
    now: datetime
    previous: ValidationReport | None

    def table(self) -> TableReport:
        found, columns, limit = self.findings, self.findings.statistics.summary(), self.expectations.max_broken_share
        references = {
            rule.column: reference
            for rule in self.expectations.rules
            if isinstance(rule, Distribution) and (reference := self._reference(rule))
        }
        rules = [self._result(rule, columns, references) for rule in self.expectations.rules]
        names = {rule.rule for rule in rules}
        rules += [self._row_result(name, "read", None) for name in found.broken if name not in names]
        counted = found.rows_broken - found.broken.get(DELIVERED_TWICE, 0)
        share = counted / max(found.rows_read, 1)
        return TableReport(
            rows_read=found.rows_read,
            rows_good=found.rows_read - found.rows_broken,
            rows_broken=found.rows_broken,
            broken_share=share,
            max_broken_share=limit,
            verdict=_worst("failed" if share > limit else "ok", *(rule.verdict for rule in rules)),
            rules=tuple(rules),
            columns=columns,
            references=references,
        )

    def _reference(self, rule: Distribution) -> ColumnSummary | None:
        if rule.reference != "previous":
            return reference_column(Path(rule.reference), self.name, rule.column)
        before = self.previous.tables.get(self.name) if self.previous else None
        return before.columns.get(rule.column) if before else None

    def _result(
        self, rule: AnyRule, columns: Mapping[str, ColumnSummary], references: Mapping[str, ColumnSummary]
    ) -> RuleResult:
        if isinstance(rule, RowRule | Unique):
            return self._row_result(rule.name, rule.expect, rule.max_broken_share)
        holds, detail = self._holds(rule, columns, references)
        rows = self.findings.statistics.rows
        verdict: Verdict = "ok" if holds else "failed"
        return RuleResult(
            rule=rule.name, expect=rule.expect, checked=rows, broken=0, share=0, verdict=verdict, detail=detail
        )

    def _row_result(self, name: str, expect: str, limit: float | None) -> RuleResult:
        broken, rows = self.findings.broken.get(name, 0), self.findings.rows_read
        share = broken / max(rows, 1)
        verdict: Verdict = "quarantined" if broken else "ok"
        return RuleResult(
            rule=name,
            expect=expect,
            checked=rows,
            broken=broken,
            share=share,
            limit=limit if limit is not None and limit < 1 else None,
            verdict="failed" if limit is not None and share > limit else verdict,
            examples=tuple(Example(**row._asdict()) for row in self.findings.examples.get(name, ())),
        )

    def _holds(
        self,
        rule: Fresh | NullShare | RowCount | Distribution,
        columns: Mapping[str, ColumnSummary],
        references: Mapping[str, ColumnSummary],
    ) -> tuple[bool, str]:
        """Whether a rule about the table holds, and what was found."""
        if isinstance(rule, RowCount):
            rows = self.findings.rows_read - self.findings.rows_broken
            return rule.min <= rows <= (rule.max if rule.max is not None else rows), f"{rows:,} good rows"
        column = columns.get(rule.column)
        if column is None or (column.count == column.nulls and not isinstance(rule, NullShare)):
            return False, "no values"
        match rule:
            case NullShare():
                share = column.nulls / column.count
                return share <= rule.max_share, f"{share:.2%} null"
            case Fresh():
                assert isinstance(column.max, datetime), f"{rule.column} holds times"
                return self.now - column.max <= rule.max_age, f"newest {column.max:%Y-%m-%d %H:%M} UTC"
            case Distribution():
                return _is_alike(rule, references.get(rule.column), column)


def _is_alike(rule: Distribution, reference: ColumnSummary | None, column: ColumnSummary) -> tuple[bool, str]:
    if reference is None or reference.count == reference.nulls:
        return True, "no earlier version to compare with"
    index = population_stability_index(reference, column)
    if rule.max_ks is None:
        return index <= rule.max_psi, f"PSI {index:.3f}"
    distance = kolmogorov_smirnov(reference, column)
    return index <= rule.max_psi and distance <= rule.max_ks, f"PSI {index:.3f}, KS {distance:.3f}"


def _worst(*verdicts: Verdict) -> Verdict:
    order: tuple[Verdict, ...] = ("failed", "quarantined", "ok")
    return next((verdict for verdict in order if verdict in verdicts), "ok")


def _why_failed(name: str, table: TableReport) -> str:
    failed = [rule for rule in table.rules if rule.verdict == "failed"]
    way_out = "Correct the source, or the limit in the file of --expectations; nothing was written"
    if failed and failed[0].limit is None:
        return f"{name}: expected {failed[0].rule}, found {failed[0].detail}. {way_out}"
    counted = [rule for rule in table.rules if rule.rule != DELIVERED_TWICE]
    worst = failed[0] if failed else max(counted, key=lambda rule: rule.broken)
    example = worst.examples[0]
    where = f"line {example.line}: {example.reason} {example.row[:200]}"
    if failed:
        share = f"{worst.broken:,} of {worst.checked:,} rows ({worst.share:.1%}) break {worst.rule!r}"
        return f"{name}: {share}, max_broken_share of the rule is {worst.limit:.1%}; e.g. {where}. {way_out}"
    share = f"{table.broken_share:.1%} of {table.rows_read:,} rows are broken"
    most = f"most of them ({worst.broken:,}) break {worst.rule!r}"
    return f"{name}: {share}, max_broken_share is {table.max_broken_share:.1%}; {most}, e.g. {where}. {way_out}"


def print_validation(report: ValidationReport) -> None:
    """A table: every rule that is broken or about the table as a whole, and how many others hold."""
    table = Table(title=f"validation of {report.dataset}", title_justify="left", box=None, pad_edge=False)
    table.add_column("table", style="bold")
    table.add_column("expected", overflow="fold")
    for head in ("rows", "broken", "share"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for name, found in report.tables.items():
        quiet = [rule for rule in found.rules if rule.verdict == "ok" and not rule.detail]
        for rule in (rule for rule in found.rules if rule not in quiet):
            said = f"{rule.rule} ({rule.detail})" if rule.detail else rule.rule
            numbers = [f"{rule.checked:,}", *([f"{rule.broken:,}", f"{rule.share:.2%}"] if rule.broken else ["", ""])]
            table.add_row(name, said, *numbers, Text(rule.verdict, STYLES[rule.verdict]))
        table.add_row(name, f"others: {len(quiet)}", f"{found.rows_read:,}", "", "", Text("ok", STYLES["ok"]))
    Console(markup=False, highlight=False).print(table)
