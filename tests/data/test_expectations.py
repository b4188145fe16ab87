import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from data.expectations import EVENT_RULES, DatasetExpectations, Expectations, read_expectations
from data.quality.rules import Context, OneOf, Present, Range, References, Type
from data.quality.table_rules import Distribution, Unique

NOW = datetime(2024, 6, 1, tzinfo=UTC)
EXAMPLE = ROOT / "jobs/configs/expectations.toml"


def events(**columns: list[object]) -> pl.DataFrame:
    """Good events, with columns replaced."""
    count = len(next(iter(columns.values()), [0, 0]))
    frame = pl.DataFrame({name: [name[0]] * count for name in ("event_id", "user_id", "item_id", "event_type")})
    times = [NOW - timedelta(days=1)] * count
    frame = frame.with_columns(
        value=pl.lit(1, dtype=pl.Float32), event_time=pl.Series(times), ingest_time=pl.Series(times), decision_id=None
    )
    return frame.with_columns(**{name: pl.Series(name, values, strict=False) for name, values in columns.items()})


def reasons(expectations: Expectations, rows: pl.DataFrame, **known: pl.Series) -> list[str]:
    checked = expectations.check(rows, range(1, rows.height + 1), None, Context(now=NOW, known=known))
    assert checked.good.height + len(checked.broken) == rows.height
    return [row.reason for row in checked.broken]


def test_good_rows_pass_the_contract_unchanged() -> None:
    rows = events(user_id=["a", "x" * 512, " "], value=[-1e9, 1e9, 0.0])
    checked = DatasetExpectations().events.check(rows, [1, 2, 3], None, Context(now=NOW))
    assert checked.good is rows
    assert checked.broken == []


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user_id": [""]}, "user_id present: missing"),
        ({"item_id": [None]}, "item_id present: missing"),
        ({"user_id": ["x" * 513]}, "user_id length in 1..512: " + "x" * 100),
        ({"value": [2e9]}, "value in -1000000000..1000000000: 2000000000"),
        ({"value": [float("nan")]}, "value present: nan"),
        ({"event_time": [NOW + timedelta(seconds=1)]}, "event_time at most now: 2024-06-01T00:00:01+00:00"),
    ],
)
def test_what_the_contract_demands(columns: dict[str, list[object]], reason: str) -> None:
    assert reasons(DatasetExpectations().events, events(**columns)) == [reason]


def test_a_row_goes_to_quarantine_once_as_it_was_with_its_first_broken_rule_and_its_line() -> None:
    rules = (Range(column="value", min=0, max=5), OneOf(column="event_type", values=("view",)))
    rows = events(value=[1.0, 7.0, 3.0, 9.0], event_type=["view", "view", "click", "click"])
    raw = pl.DataFrame({"stars": ["1", "7", "3", "nine"], "note": ["ä", "<b>", None, "z"]})
    checked = Expectations(rules=rules).check(rows, [4, 8, 15, 16], raw)
    assert checked.good.get_column("value").to_list() == [1.0]
    assert checked.good.columns == rows.columns
    assert [(row.line, row.reason) for row in checked.broken] == [
        (8, "value in 0..5: 7"),
        (15, "event_type one of view: click"),
        (16, "value in 0..5: 9"),
    ]
    assert json.loads(checked.broken[1].row) == {"stars": "3", "note": None}


def test_a_rule_may_name_a_column_of_the_source() -> None:
    raw = pl.DataFrame({"age": ["30", "old"], "value": ["not", "this"]})
    rules = Type(column="age", type="integer"), Range(column="value", min=0)
    checked = Expectations(rules=rules).check(events(value=[1.0, 1.0]), [1, 2], raw)
    assert [row.reason for row in checked.broken] == ["age is integer: old"]


def test_a_column_that_is_nowhere_is_refused() -> None:
    message = "'age present': there is no column 'age'; there are event_id, user_id"
    with pytest.raises(TowerlineError, match=message):
        Expectations(rules=(Present(column="age"),)).check(events(), [1, 2])


def test_references_are_to_the_ids_of_another_table() -> None:
    expectations = Expectations(rules=(References(column="item_id", table="items", to="item_id"),))
    found = reasons(expectations, events(item_id=["x", "y"]), **{"items.item_id": pl.Series(["x"])})
    assert found == ["item_id in items.item_id: y"]


def test_a_whole_table_is_also_checked_for_what_must_be_unique() -> None:
    rows = pl.DataFrame({"item_id": ["c", "a", "b", "a", ""], "title": ["x", "y", "x", "z", "x"]})
    raw = rows.select(sku="item_id")
    rules = Present(column="item_id"), Unique(columns=("item_id",)), Unique(columns=("title",))
    checked = Expectations(rules=rules).check_whole(rows, [2, 3, 2, 3, 4], raw)
    assert checked.good.rows() == [("c", "x"), ("a", "y")]
    assert checked.broken == [
        (4, "item_id present: missing", '{"sku": ""}'),
        (3, "unique item_id: a", '{"sku": "a"}'),
        (2, "unique title: x", '{"sku": "b"}'),
    ]
    assert checked.good.columns == rows.columns


def test_no_rows_and_no_rules() -> None:
    assert DatasetExpectations().events.check(events().clear(), []).broken == []
    assert Expectations().check(events(), [1, 2]).broken == []


def test_the_example_is_read_on_top_of_the_contract() -> None:
    read = read_expectations(EXAMPLE)
    kinds = {rule.expect for rule in (*read.events.rules, *read.items.rules)} | {"fresh"}
    assert kinds == {
        *("type", "present", "range", "length", "one_of", "references"),
        *("unique", "fresh", "null_share", "row_count", "distribution"),
    }
    assert read.events.rules[: len(EVENT_RULES)] == EVENT_RULES
    assert (read.events.max_broken_share, read.items.max_broken_share) == (0.2, 0.05)
    assert read.users == DatasetExpectations().users == read_expectations(None).users
    assert [rule.name for rule in read.events.unique_rules] == ["unique user_id, item_id, event_time"]


def test_what_the_example_says_of_freshness_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text(re.sub(r"(?m)^# (\[\[|\w+ = )", r"\1", EXAMPLE.read_text()))
    assert any(rule.name == "event_time not older than 7 d" for rule in read_expectations(path).events.rules)


def test_a_reference_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('[[events.rules]]\nexpect = "distribution"\ncolumn = "value"\nreference = "old/validation.json"\n')
    with pytest.raises(TowerlineError, match=f"{re.escape(str(tmp_path))}/old/validation.json: No such file"):
        read_expectations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[events]\nmax_share = 1", "events.max_share = 1: Extra inputs are not permitted"),
        ("[events]\nmax_broken_share = 1.5", "events.max_broken_share = 1.5: Input should be less than or equal to 1"),
        ("[sessions]\n", "sessions = {}: Extra inputs"),
        ('[[events.rules]]\nexpect = "rang"\ncolumn = "x"', "events.rules.0 = .*'rang'.*'type', 'present', 'range'"),
        ('[[events.rules]]\nexpect = "range"\ncolumn = "x"\nmin = "a"', "events.rules.0.range.min.* = 'a': "),
        (
            '[[events.rules]]\nexpect = "fresh"\ncolumn = "value"\nmax_age = "7d"',
            "value holds no times; use event_time",
        ),
        (
            '[[events.rules]]\nexpect = "unique"\ncolumns = ["item_id"]',
            "events are compared user by user; add 'user_id'",
        ),
        (
            '[[items.rules]]\nexpect = "null_share"\ncolumn = "age"\nmax_share = 0',
            "items have no column 'age'; there are",
        ),
        ('[[events.rules]]\nexpect = "distribution"\ncolumn = "event_time"', "times move on by nature; use Fresh"),
        (
            '[[events.rules]]\nexpect = "distribution"\ncolumn = "item_id"\nmax_ks = 0.1',
            "holds no numbers, which max_ks",
        ),
        ("events = ", "see jobs/configs/expectations.toml for an example"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(TowerlineError, match=message) as error:
        read_expectations(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(TowerlineError, match=r"nowhere.toml: .*No such file"):
        read_expectations(tmp_path / "nowhere.toml")


def test_rules_of_code_are_checked_as_those_of_a_file() -> None:
    with pytest.raises(ValueError, match="events are compared user by user"):
        DatasetExpectations(events=Expectations(rules=(Unique(columns=("event_id",)),)))
    assert Distribution(column="value").reference == "previous"
