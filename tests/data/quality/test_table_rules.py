from datetime import timedelta

import polars as pl
import pytest
from pydantic import ValidationError

from data.quality.table_rules import Distribution, Fresh, NullShare, RowCount, Unique


def test_the_first_of_equal_rows_is_kept() -> None:
    rows = pl.DataFrame({"user": ["a", "a", "b", "a"], "item": ["x", "x", "x", "y"], "source_row": [9, 3, 4, 5]})
    repeated = Unique(columns=("user", "item")).repeated(rows)
    assert repeated.rows() == [(9, "unique user, item: a, x")]
    assert Unique(columns=("user",)).repeated(rows).get_column("source_row").to_list() == [5, 9]
    assert Unique(columns=("user",)).repeated(rows.clear()).is_empty()


def test_values_beside_a_null_are_compared() -> None:
    rows = pl.DataFrame({"user": ["a", "a", "a"], "item": [None, None, "x"], "source_row": [1, 2, 3]})
    assert Unique(columns=("user", "item")).repeated(rows).rows() == [(2, "unique user, item: a")]


@pytest.mark.parametrize(
    ("text", "age", "name"),
    [
        ("7d", timedelta(days=7), "t not older than 7 d"),
        ("36h", timedelta(hours=36), "t not older than 36 h"),
        ("1.5h", timedelta(minutes=90), "t not older than 90 m"),
        ("30s", timedelta(seconds=30), "t not older than 30 s"),
    ],
)
def test_ages(text: str, age: timedelta, name: str) -> None:
    rule = Fresh.model_validate({"column": "t", "max_age": text})
    assert (rule.max_age, rule.name) == (age, name)


@pytest.mark.parametrize("text", ["7 moons", "0d", "-1d"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(ValidationError, match="max_age"):
        Fresh.model_validate({"column": "t", "max_age": text})


def test_names() -> None:
    assert NullShare(column="title", max_share=0.05).name == "title null in at most 5% of rows"
    assert RowCount(min=1000, max=2000).name == "at least 1,000 rows, at most 2,000"
    assert Distribution(column="value").name == "value distributed as in previous (PSI at most 0.25)"
    assert Distribution(column="value", max_ks=0.1).name.endswith("(PSI at most 0.25, KS at most 0.1)")
