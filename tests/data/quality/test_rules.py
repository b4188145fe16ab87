from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
from data.quality.rules import (
    Context,
    Length,
    OneOf,
    Present,
    Range,
    References,
    RowRule,
    Type,
    reason_of,
    rule_of,
    without_value,
)
from data.quality.table_rules import Unique

NOW = datetime(2024, 6, 1, tzinfo=UTC)
YEAR = datetime(2024, 1, 1, tzinfo=UTC)


def broken(rule: RowRule, values: list[object], kind: pl.DataType | None = None, **known: pl.Series) -> list[object]:
    """The values that break a rule."""
    column = pl.Series(rule.column, values, dtype=kind)
    context = Context(now=NOW, known={name.replace("_", ".", 1): ids for name, ids in known.items()})
    bad = column.to_frame().select(rule.is_broken(pl.col(rule.column), column.dtype, context).alias("bad")).to_series()
    bad = bad if len(bad) == len(column) else pl.Series([bad[0]] * len(column))
    return [value for value, is_bad in zip(values, bad.fill_null(value=False), strict=True) if is_bad]


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (Type(column="x", type="number"), ["1", " 2.5 ", "", None, "1e3", "three"], ["three"]),
        (Type(column="x", type="integer"), ["1", "2.5", None], ["2.5"]),
        (Type(column="x", type="integer"), [1.0, 2.5, None], [2.5]),
        (Type(column="x", type="integer"), [1, 2], []),
        (Type(column="x", type="time"), ["2024-01-01", "2024-01-01T08:00:00+02:00", "soon"], ["soon"]),
        (Type(column="x", type="time"), [YEAR], []),
        (Type(column="x", type="time"), [1.0], [1.0]),
        (Type(column="x", type="boolean"), ["true", "False", "yes"], ["yes"]),
        (Type(column="x", type="boolean"), [True], []),
        (Type(column="x", type="text"), ["a"], []),
        (Type(column="x", type="text"), [1], [1]),
        (Type(column="x", type="number"), [[1]], [[1]]),
        (Present(column="x"), ["a", "", None, " "], ["", None]),
        (Present(column="x"), [1, None], [None]),
        (Range(column="x", min=0, max=5), [0, 5, 6, -1, None], [6, -1]),
        (Range(column="x", min=0, max=5), ["0", "5.0", "6", "", "five", None], ["6", "five"]),
        (Range(column="x", min=0), [-1.0, 1e300], [-1.0]),
        (Range(column="x", max="now"), [NOW, NOW + timedelta(microseconds=1)], [NOW + timedelta(microseconds=1)]),
        (
            Range(column="x", min=YEAR, max="now"),
            ["2023-12-31", "2024-05-01", "2025-01-01"],
            ["2023-12-31", "2025-01-01"],
        ),
        (Length(column="x", min=1, max=3), ["", "abc", "żółw", None], ["", "żółw"]),
        (Length(column="x", max=1), [["a"], ["a", "b"], []], [["a", "b"]]),
        (Length(column="x", max=2), [99, 100], [100]),
        (OneOf(column="x", values=("a", "b")), ["a", "c", "", None], ["c"]),
        (OneOf(column="x", values=(1, 2.5)), [1.0, 2.5, 3.0, None], [3.0]),
        (OneOf(column="x", values=(1, 2)), ["1", "two"], ["two"]),
        (OneOf(column="x", values=("1",)), [1, 2], [2]),
    ],
)
def test_what_breaks_a_rule(rule: RowRule, values: list[object], expected: list[object]) -> None:
    assert broken(rule, values) == expected


def test_nan_is_no_value_and_in_no_range() -> None:
    nan = float("nan")
    assert len(broken(Present(column="x"), [nan, 1.0])) == 1
    assert len(broken(Range(column="x", max=5), [nan, 1.0])) == 1
    assert len(broken(OneOf(column="x", values=(1,)), [nan, 1.0])) == 1


def test_limits_are_those_of_the_columns_own_precision() -> None:
    """0.1 as a 32-bit float is over 0.1 as a 64-bit one."""
    assert broken(Range(column="x", max=0.1), [0.1, 0.2], pl.Float32()) == [0.2]
    assert broken(OneOf(column="x", values=(0.1,)), [0.1, 0.2], pl.Float32()) == [0.2]


def test_references() -> None:
    rule = References(column="item", table="items", to="item_id")
    assert broken(rule, ["a", "z", None], items_item_id=pl.Series(["a", "b"])) == ["z"]
    assert broken(rule, [1, 3], items_item_id=pl.Series(["1", "2"])) == [3]
    with pytest.raises(TowerlineError, match=r"'item in items\.item_id': there is no table items; pass --items"):
        broken(rule, ["a"])


def test_numbers_are_not_compared_with_times() -> None:
    with pytest.raises(TowerlineError, match=r"'x in 0..5': the column holds Date; give limits that are times"):
        broken(Range(column="x", min=0, max=5), [date(2024, 1, 1)])
    with pytest.raises(TowerlineError, match="give limits that are numbers"):
        broken(Range(column="x", max="now"), [1.0])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "neither min nor max"),
        ({"min": 5, "max": 1}, "min 5.0 is over max 1.0"),
        ({"min": 0, "max": "now"}, "are not of one kind"),
        ({"min": YEAR, "max": 5}, "are not of one kind"),
        ({"min": datetime(2024, 1, 1)}, "has no time zone; write 2024-01-01T00:00:00Z"),
        ({"min": float("nan")}, "finite"),
        ({"max": "tomorrow"}, "max"),
    ],
)
def test_ranges_that_make_no_sense(limits: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range.model_validate({"column": "x", **limits})


@pytest.mark.parametrize(
    ("rule", "value", "reason"),
    [
        (Range(column="value", min=0, max=5), 7.0, "value in 0..5: 7"),
        (Range(column="value", min=0.5), 0.25, "value at least 0.5: 0.25"),
        (Range(column="event_time", max="now"), NOW, "event_time at most now: 2024-06-01T00:00:00+00:00"),
        (Present(column="user_id"), None, "user_id present: missing"),
        (OneOf(column="event_type", values=("a: b", "c")), "x", "event_type one of a: b, c: x"),
        (Length(column="user_id", min=1, max=3), "x" * 1000, f"user_id length in 1..3: {'x' * 100}"),
        (Type(column="age", type="integer"), "old", "age is integer: old"),
    ],
)
def test_a_reason_names_the_rule_what_it_wanted_and_the_value(rule: RowRule, value: object, reason: str) -> None:
    assert reason_of(rule, value) == reason
    assert rule_of(reason, [Present(column="other"), rule]) == rule.name


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("user_id is missing", "user_id present"),
        ("user_id is empty", "user_id present"),
        ("value is NaN", "value present"),
        ("value is not a number", "value is number"),
        ("value is too large", "value in -9..9"),
        ("event_time is in the future", "event_time is in the future"),
        ("wrong number of fields: 1 instead of 4", "wrong number of fields"),
        ("duplicate item_id: it was there before", "unique item_id"),
        ("duplicate event: event_id was there before", "duplicate event"),
    ],
)
def test_what_parsing_refuses_counts_for_the_rule_that_says_so(reason: str, name: str) -> None:
    rules = [
        Present(column="user_id"),
        Present(column="value"),
        Type(column="value", type="number"),
        Range(column="value", min=-9, max=9),
        Unique(columns=("item_id",)),
    ]
    assert rule_of(reason, rules) == name


def test_reasons_are_counted_without_their_values() -> None:
    rules = [Range(column="value", max=9)]
    assert without_value("value at most 9: 10", rules) == "value at most 9"
    assert without_value("wrong number of fields: 1 instead of 4", rules) == "wrong number of fields: 1 instead of 4"
