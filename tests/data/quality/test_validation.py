import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.quality.validation import (
    EventRules,
    check_types,
    find_repeated,
    quarantine_table,
    resolve_columns,
    validate_events,
)

NOW = datetime(2024, 6, 1, tzinfo=UTC)
MORNING = datetime(2024, 5, 1, 8, tzinfo=UTC)
RULES = EventRules(now=NOW)
COLUMNS = {"user_id": "user_id", "item_id": "item_id", "event_time": "event_time", "value": "value"}


def rows(**changes: object) -> pl.DataFrame:
    """One good row, with changes."""
    return pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "event_time": [MORNING], "value": [1.5]}).with_columns(
        **{name: pl.Series([value]) for name, value in changes.items()}
    )


def check(table: pl.DataFrame, rules: EventRules = RULES) -> tuple[pl.DataFrame, list[str]]:
    columns = {name: name for name in table.columns}
    good, broken = validate_events(table, list(range(1, table.height + 1)), columns, rules)
    return good, [row.reason for row in broken]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("user_id", "Żółw /'\"%20 \u0000", "Żółw /'\"%20 \u0000"),
        ("user_id", " ", " "),
        ("user_id", 2**63 - 1, "9223372036854775807"),
        ("user_id", 7.0, "7"),
        ("user_id", 7.25, "7.25"),
        ("item_id", -3, "-3"),
        ("value", 3, 3.0),
        ("value", -1e38, pytest.approx(-1e38)),
        ("event_type", "click", "click"),
        ("decision_id", "", None),
        ("decision_id", "d1", "d1"),
    ],
)
def test_accepted(column: str, value: object, expected: object) -> None:
    good, reasons = check(rows(**{column: value}))
    assert reasons == []
    assert good[column].to_list() == [expected]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "user_id is missing"),
        ("user_id", "", "user_id is empty"),
        ("item_id", "NaN", "item_id is NaN"),
        ("item_id", float("nan"), "item_id is NaN"),
        ("user_id", 2.0**53, "user_id is a floating-point number too large to be exact"),
        ("event_time", NOW + timedelta(microseconds=1), "event_time is in the future"),
        ("ingest_time", NOW + timedelta(days=1), "ingest_time is in the future"),
        ("event_time", "yesterday", "event_time is not a time in the years 1 to 9999"),
        ("event_time", "", "event_time is missing"),
        ("value", float("nan"), "value is NaN"),
        ("value", 1e39, "value is too large"),
        ("value", float("-inf"), "value is too large"),
        ("event_type", "", "event_type is empty"),
        ("event_id", "", "event_id is empty"),
    ],
)
def test_quarantined(column: str, value: object, reason: str) -> None:
    good, reasons = check(rows(**{column: value}))
    assert (good.height, reasons) == (0, [reason])


def test_a_null_value_or_time_is_missing() -> None:
    table = pl.concat([rows(), rows()]).with_columns(
        value=pl.Series([None, 1.0]), event_time=pl.Series([MORNING, None], dtype=pl.Datetime("us", "UTC"))
    )
    assert check(table)[1] == ["value is missing", "event_time is missing"]


def test_what_a_source_does_not_say_has_a_default() -> None:
    good, _ = check(rows().drop("value"), EventRules(now=NOW, event_type="play"))
    event = good.row(0, named=True)
    assert (event["value"], event["event_type"], event["decision_id"]) == (1.0, "play", None)
    assert event["ingest_time"] == event["event_time"] == MORNING


def test_the_quarantine_holds_the_row_as_it_was_and_where_it_stood() -> None:
    table = pl.concat([rows(), rows(value=float("nan"), user_id='Ж"')]).with_columns(tags=pl.Series([["a"], ["b"]]))
    _, broken = validate_events(table, [17, 20], COLUMNS, RULES)
    row = quarantine_table("events", "e.csv", broken).row(0, named=True)
    assert list(row.values())[:4] == ["events", "e.csv", 20, "value is NaN"]
    assert json.loads(row["row"]) == {
        "user_id": 'Ж"',
        "item_id": "i",
        "event_time": "2024-05-01 08:00:00+00:00",
        "value": "nan",
        "tags": ["b"],
    }


def test_repeated_rows_without_event_ids() -> None:
    """The whole row again is a slip; the same deed that differs in another column happened twice."""
    table = pl.concat([rows()] * 3).with_columns(session=pl.Series(["a", "b", "a"]))
    good, _ = validate_events(table, [1, 2, 3], COLUMNS, RULES)
    assert find_repeated(good).rows() == [(3, "duplicate event: the same row was there before")]


def test_repeated_event_ids() -> None:
    table = pl.concat([rows(event_id="e", value=1.0), rows(event_id="e", value=2.0), rows(event_id="f", value=1.0)])
    assert find_repeated(check(table)[0]).rows() == [(2, "duplicate event: event_id was there before")]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, r"events.csv has no column 'user_id'; it has 'uid', 'item_id', 'when'. Name yours: --columns user_id="),
        ({"user_id": "uid", "event_time": "ts"}, "events.csv has no column 'ts' for event_time; it has 'uid'"),
        ({"usr": "uid"}, "'usr' is no column of events; there are 'user_id', 'item_id'"),
    ],
)
def test_columns_that_are_not_there_are_refused(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        resolve_columns(wanted, ["uid", "item_id", "when"], "events.csv")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("event_time", True, r"column 'event_time' .event_time. is Boolean, expected timestamp\[us, UTC\]; convert it"),
        ("event_time", [MORNING], "is List"),
        ("user_id", ["u"], "is List.*expected text or a whole number"),
        ("user_id", MORNING, "is Datetime.*expected text"),
        ("value", "3", "is String, expected a number"),
        ("value", True, "is Boolean, expected a number"),
        ("event_time", 881250949, "holds numbers .the first is 881250949.*--time-unit s, ms or us"),
    ],
)
def test_columns_of_the_wrong_type_are_refused(column: str, value: object, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        check_types(rows(**{column: value}), COLUMNS, None, "e.parquet", has_types=True)


def test_good_types_pass() -> None:
    check_types(rows(user_id=3, event_time=5), COLUMNS, "s", "e.parquet", has_types=True)
    check_types(rows(event_time="2024-01-01"), COLUMNS, None, "e.parquet", has_types=True)
