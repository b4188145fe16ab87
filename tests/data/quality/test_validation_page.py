import html
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from data.expectations import EVENT_RULES, DatasetExpectations, Expectations
from data.quality.findings import Findings
from data.quality.rules import OneOf, Range
from data.quality.table_rules import Distribution
from data.quality.validation_page import validation_page
from data.quality.validation_report import ValidationReport, conclude
from data.sources.chunk import Broken
from tests.pages import Page

NOW = datetime(2024, 6, 1, tzinfo=UTC)
NASTY = "<script>alert(\"1\")</script> & 'x'</pre><h1>"


def events(count: int = 400) -> pl.DataFrame:
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user_id": [NASTY if number % 3 else f"u{number}" for number in range(count)],
            "value": random.lognormal(0, 1, count).astype(np.float32),
            "event_time": [NOW - timedelta(hours=number) for number in range(count)],
            "decision_id": pl.Series([None] * count, dtype=pl.String),
            "source_row": range(count),
        }
    )


def report(rows: pl.DataFrame, previous: ValidationReport | None = None) -> ValidationReport:
    rules = Range(column="value", max=3), OneOf(column="user_id", values=(NASTY, "u0")), Distribution(column="value")
    expectations = DatasetExpectations(events=Expectations(rules=rules))
    checked = expectations.events.check(rows, rows.get_column("source_row"))
    unreadable = [Broken(7, f"{NASTY}: {NASTY}", NASTY)]
    found = Findings.of(checked.good, [*checked.broken, *unreadable], expectations.events)
    items = Findings.of(pl.DataFrame({"item_id": ["x"], "title": [NASTY], "attributes": [[NASTY]]}), [], Expectations())
    tables = {"events": found, "items": items, "users": Findings()}
    return conclude(expectations, tables, dataset=NASTY, now=NOW, previous=previous)


@pytest.fixture(scope="module")
def text() -> str:
    return validation_page(report(events(), previous=report(events(300))))


def test_all_text_is_escaped(text: str) -> None:
    """Name of the data set, rules, reasons, rows, values of columns."""
    page = Page(text)
    assert "<script" not in text
    assert page.open == []
    assert page.tags.count("h1") == 1
    assert text.count(html.escape(NASTY)) >= 8
    assert page.text.count(NASTY) >= 6


def test_nothing_is_fetched_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert "@import" not in text


def test_rules_and_quarantined_rows_are_on_the_page(text: str) -> None:
    page = Page(text)
    for expected in ("value at most 3", "value distributed as in previous", "PSI 0.0", "line 7: ", "users", "no rows"):
        assert expected in page.text
    assert ("class", "verdict quarantined") in page.attributes


def test_there_is_a_histogram_for_every_column_that_has_values(text: str) -> None:
    cards = text.split("<article")[1:]
    assert len(cards) == 7
    drawn = [card for card in cards if "<svg" in card or 'class="values"' in card]
    assert [card for card in cards if card not in drawn and "no values" not in card] == []
    assert len(drawn) == 6
    assert 'aria-label="histogram from 2024-05-15' in text
    assert 'class="before"' in text, "the reference is not drawn"


def test_it_is_made_for_phones_and_for_the_dark(text: str) -> None:
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_report_of_good_rows_says_what_was_looked_at() -> None:
    expectations = DatasetExpectations(events=Expectations(rules=EVENT_RULES))
    found = Findings.of(events(), [], expectations.events)
    page = Page(validation_page(conclude(expectations, {"events": found}, dataset="mine", now=NOW)))
    assert f"{len(EVENT_RULES)} rules hold for every row" in page.text
    assert "table" not in page.tags
