from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.expectations import DatasetExpectations, Expectations
from data.quality.findings import Findings
from data.quality.rules import Range
from data.quality.table_rules import AnyRule, Distribution, Fresh, NullShare, RowCount
from data.quality.validation_report import ValidationReport, conclude, print_validation, read_validation
from data.sources.chunk import Broken

NOW = datetime(2024, 6, 1, tzinfo=UTC)
IN_RANGE = Range(column="value", min=0, max=5)


def events(values: list[float]) -> pl.DataFrame:
    count = len(values)
    times = [NOW - timedelta(days=10, hours=number) for number in range(count)]
    return pl.DataFrame(
        {
            "user_id": [f"u{number % 7}" for number in range(count)],
            "value": pl.Series(values, dtype=pl.Float32),
            "event_time": times,
            "decision_id": ["d", None, None, None] * (count // 4) + [None] * (count % 4),
            "source_row": range(count),
        }
    )


def report(
    *rules: AnyRule,
    values: list[float] | None = None,
    limit: float = 0.5,
    previous: ValidationReport | None = None,
    more: tuple[Broken, ...] = (),
) -> ValidationReport:
    expectations = DatasetExpectations(events=Expectations(rules=rules, max_broken_share=limit))
    rows = events(values or [1.0, 2.0, 5.0, 7.0] * 25)
    checked = expectations.events.check(rows, rows.get_column("source_row"))
    found = Findings.of(checked.good, [*checked.broken, *more], expectations.events)
    return conclude(expectations, {"events": found}, dataset="mine", now=NOW, previous=previous)


def test_every_rule_with_what_became_of_it() -> None:
    events = report(IN_RANGE, Range(column="value", min=-1, max=9)).tables["events"]
    assert (events.rows_read, events.rows_good, events.rows_broken, events.broken_share) == (100, 75, 25, 0.25)
    in_range, other = events.rules
    assert (in_range.rule, in_range.checked, in_range.broken, in_range.share) == ("value in 0..5", 100, 25, 0.25)
    assert (in_range.verdict, other.verdict, events.verdict) == ("quarantined", "ok", "quarantined")
    assert [(example.line, example.reason) for example in in_range.examples] == [
        (3, "value in 0..5: 7"),
        (7, "value in 0..5: 7"),
        (11, "value in 0..5: 7"),
    ]
    assert events.columns["value"].max == 5


def test_too_many_broken_rows_stop_the_job() -> None:
    report(IN_RANGE, limit=0.25).raise_if_failed()
    failed = report(IN_RANGE, limit=0.2)
    assert failed.verdict == failed.tables["events"].verdict == "failed"
    message = (
        r"mine: events: 25\.0% of 100 rows are broken, max_broken_share is 20\.0%; most of them \(25\) break "
        r"'value in 0\.\.5', e\.g\. line 3: value in 0\.\.5: 7 .*nothing was written"
    )
    with pytest.raises(TowerlineError, match=message):
        failed.raise_if_failed()


def test_a_rule_may_have_a_limit_of_its_own() -> None:
    rule = Range(column="value", min=0, max=5, max_broken_share=0.1)
    message = r"25 of 100 rows \(25\.0%\) break 'value in 0\.\.5', max_broken_share of the rule is 10\.0%"
    with pytest.raises(TowerlineError, match=message):
        report(rule).raise_if_failed()


def test_events_that_were_there_before_are_no_reason_to_stop() -> None:
    again = tuple(Broken(line, "duplicate event: event_id was there before", "{}") for line in range(300))
    found = report(IN_RANGE, limit=0.1, more=again)
    assert found.tables["events"].rules[-1].rule == "duplicate event"
    assert found.tables["events"].broken_share == pytest.approx(25 / 400)
    found.raise_if_failed()
    with pytest.raises(TowerlineError, match=r"most of them \(25\) break 'value in 0\.\.5'"):
        report(IN_RANGE, limit=0.05, more=again).raise_if_failed()


@pytest.mark.parametrize(
    ("rule", "verdict", "detail"),
    [
        (Fresh(column="event_time", max_age=timedelta(days=11)), "ok", "newest 2024-05-22 00:00 UTC"),
        (Fresh(column="event_time", max_age=timedelta(days=9)), "failed", "newest 2024-05-22 00:00 UTC"),
        (NullShare(column="decision_id", max_share=0.8), "ok", "75.00% null"),
        (NullShare(column="decision_id", max_share=0.7), "failed", "75.00% null"),
        (RowCount(min=100), "ok", "100 good rows"),
        (RowCount(min=101), "failed", "100 good rows"),
        (RowCount(max=99), "failed", "100 good rows"),
        (Distribution(column="value"), "ok", "no earlier version to compare with"),
    ],
)
def test_rules_about_the_table(rule: AnyRule, verdict: str, detail: str) -> None:
    found = report(rule)
    [result] = found.tables["events"].rules
    assert (result.verdict, result.detail, result.broken) == (verdict, detail, 0)
    if verdict == "failed":
        with pytest.raises(TowerlineError, match=f"mine: events: expected .*, found {detail}"):
            found.raise_if_failed()


def test_a_column_is_compared_with_the_version_before(tmp_path: Path) -> None:
    rule = Distribution(column="value", max_ks=0.2)
    before = report(rule)
    same = report(rule, previous=before).tables["events"]
    assert (same.rules[0].verdict, same.rules[0].detail) == ("ok", "PSI 0.000, KS 0.000")
    assert same.references["value"] == before.tables["events"].columns["value"]
    other = report(rule, values=[1.0, 1.0, 1.0, 7.0] * 25, previous=before)
    assert other.tables["events"].rules[0].detail == "PSI 2.459, KS 0.500"
    assert other.verdict == "failed"
    before.write(tmp_path)
    by_path = Distribution(column="value", reference=tmp_path / "validation.json")
    assert report(by_path).tables["events"].rules[0].detail == "PSI 0.000"


def test_no_good_row_is_no_distribution_and_not_fresh() -> None:
    rules = IN_RANGE, Distribution(column="value"), Fresh(column="event_time", max_age=timedelta(days=1))
    found = report(*rules, values=[9.0], limit=1.0).tables["events"]
    assert [rule.verdict for rule in found.rules] == ["quarantined", "failed", "failed"]
    assert found.rules[1].detail == "no values"


def test_the_report_is_written_and_read(tmp_path: Path) -> None:
    found = report(IN_RANGE)
    found.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["validation.html", "validation.json"]
    assert read_validation(tmp_path / "validation.json") == found
    assert read_validation(tmp_path / "nothing.json") is None
    (tmp_path / "validation.json").write_text('{"dataset": 1}')
    with pytest.raises(TowerlineError, match="is no report of a validation"):
        read_validation(tmp_path / "validation.json")


def test_the_table_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    broken = Broken(1, "[red]wrong[/red]: x", "{}")
    print_validation(report(IN_RANGE, Range(column="value", max=9), RowCount(min=1), more=(broken,)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["events", "value", "in", "0..5", "101", "25", "24.75%", "quarantined"] in lines
    assert ["events", "at", "least", "1", "rows", "(75", "good", "rows)", "75", "ok"] in lines
    assert ["events", "[red]wrong[/red]", "101", "1", "0.99%", "quarantined"] in lines
    assert ["events", "others:", "1", "101", "ok"] in lines
