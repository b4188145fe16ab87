"""Expectations inside an ingestion: what they send to quarantine, what they stop, and what they leave behind."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from data.expectations import DatasetExpectations, read_expectations
from data.ingest.ingestion import Ingested, TabularSource, ingest_files
from data.quality.validation import EventRules
from data.quality.validation_report import ValidationReport, read_validation

RULES = EventRules(
    now=datetime(2024, 6, 1, tzinfo=UTC),
    columns={"user_id": "who", "item_id": "what", "event_time": "when", "value": "stars"},
    time_unit="s",
)
EXPECTED = """
[events]
max_broken_share = 0.4
[[events.rules]]
expect = "range"
column = "value"
min = 0
max = 5
[[events.rules]]
expect = "type"
column = "session"
type = "integer"
[[events.rules]]
expect = "references"
column = "item_id"
table = "items"
to = "item_id"
[[events.rules]]
expect = "unique"
columns = ["user_id", "item_id"]
[[events.rules]]
expect = "distribution"
column = "value"
[[items.rules]]
expect = "unique"
columns = ["title"]
"""
ITEMS = "what,title\n" + "".join(f"i{number},Item {number}\n" for number in range(10)) + "i10,Item 3\n"


def rows(first: int = 0, users: int = 20, stars: int = 6) -> list[str]:
    """Each user meets nine items, once."""
    return [
        f"u{user},i{item},{1_700_000_000 + first + user * 100 + item},{(user + item) % stars},{user}"
        for user in range(first, first + users)
        for item in range(9)
    ]


@pytest.fixture
def expectations(tmp_path: Path) -> DatasetExpectations:
    path = tmp_path / "expectations.toml"
    path.write_text(EXPECTED)
    return read_expectations(path)


def ingest(folder: Path, events: list[str], expectations: DatasetExpectations, *, append: bool = False) -> Ingested:
    (folder / "items.csv").write_text(ITEMS)
    path = folder / f"events-{len(list(folder.glob('events-*')))}.csv"
    path.write_text("\n".join(["who,what,when,stars,session", *events]) + "\n")
    source = TabularSource(path, folder / "items.csv")
    return ingest_files(folder / "home", "mine", source, RULES, expectations=expectations, append=append)


def report_of(ingested: Ingested) -> ValidationReport:
    report = read_validation(ingested.dataset.path / "validation.json")
    assert report is not None
    return report


BAD = [
    "u0,i9,1700000001,7,1",
    "u1,i9,1700000002,3,x",
    "u2,none,1700000003,3,1",
    "u3,i3,1700090000,3,1",
    "u4,i9,soon,3,1",
]


def test_bad_rows_are_in_quarantine_with_the_rule_they_broke(tmp_path: Path, expectations: DatasetExpectations) -> None:
    ingested = ingest(tmp_path, [*BAD, *rows()], expectations)
    quarantine = ingested.dataset.quarantine()
    assert quarantine.select("table", "line", "reason").rows() == [
        ("events", 2, "value in 0..5: 7"),
        ("events", 3, "session is integer: x"),
        ("events", 4, "item_id in items.item_id: none"),
        ("events", 6, "event_time is not a number"),
        ("events", 37, "unique user_id, item_id: u3, i3"),
        ("items", 12, "unique title: Item 3"),
    ]
    assert json.loads(quarantine["row"][0]) == {
        "who": "u0",
        "what": "i9",
        "when": "1700000001",
        "stars": "7",
        "session": "1",
    }
    report = report_of(ingested)
    events = report.tables["events"]
    assert (events.rows_read, events.rows_good, events.rows_broken) == (185, 180, 5)
    broken = {rule.rule: rule.broken for rule in events.rules if rule.broken}
    assert broken == {
        "value in 0..5": 1,
        "session is integer": 1,
        "item_id in items.item_id": 1,
        "event_time is time": 1,
        "unique user_id, item_id": 1,
    }
    assert (ingested.dataset.manifest.events, report.verdict) == (180, "quarantined")
    assert (ingested.dataset.path / "validation.html").read_text().startswith("<!doctype html>")


def test_too_many_broken_rows_leave_everything_as_it_was(tmp_path: Path, expectations: DatasetExpectations) -> None:
    with pytest.raises(TowerlineError, match=r"mine: events: .* are broken, max_broken_share is 40.0%; most of them"):
        ingest(tmp_path, rows(stars=12), expectations)
    refused = tmp_path / "home" / "reports" / "refused-mine"
    assert "stars" in (refused / "validation.html").read_text()
    assert [path for path in (tmp_path / "home").rglob("*.*") if path.parent != refused] == []
    good = ingest(tmp_path, rows(), expectations).dataset
    files = sorted((tmp_path / "home").rglob("*"))
    with pytest.raises(TowerlineError, match="most of them"):
        ingest(tmp_path, rows(stars=12), expectations)
    assert sorted((tmp_path / "home").rglob("*")) == files
    assert ingest(tmp_path, rows(), expectations).dataset == good


def test_a_shifted_batch_is_stopped(tmp_path: Path, expectations: DatasetExpectations) -> None:
    ingest(tmp_path, rows(), expectations)
    same = report_of(ingest(tmp_path, rows(first=100), expectations, append=True)).tables["events"]
    (detail,) = [rule.detail for rule in same.rules if rule.expect == "distribution"]
    assert detail.startswith("PSI 0.0")
    with pytest.raises(TowerlineError, match=r"expected value distributed as in previous .* found PSI [\d.]+\."):
        ingest(tmp_path, rows(first=200, stars=2), expectations, append=True)


def test_repeated_events_do_not_stop_a_job(tmp_path: Path, expectations: DatasetExpectations) -> None:
    again = report_of(ingest(tmp_path, rows() * 3, expectations)).tables["events"]
    assert (again.rows_good, again.rows_broken, again.broken_share) == (180, 360, 0)
    assert {rule.rule for rule in again.rules if rule.broken} == {"duplicate event"}
