"""Generated events are the same for a seed, and have what expressions ask for."""

import polars as pl
import pytest

from data.checks.generated_events import generate_events, literals_in

TYPE, VALUE = pl.col("event_type"), pl.col("value")


def test_generated_events_have_ties_and_late_arrivals() -> None:
    events = generate_events(60, seed=3)
    assert events.equals(generate_events(60, seed=3))
    assert not events.equals(generate_events(60, seed=4))
    assert events["event_time"].n_unique() < 50
    assert 5 < events.filter(pl.col("ingest_time") > pl.col("event_time")).height < 40


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (TYPE == "purchase", {"event_type": ["purchase"]}),
        (TYPE.is_in(["a", "b"]) & (VALUE >= 5), {"event_type": ["a", "b"], "value": [4, 5, 6]}),
        (pl.when(TYPE == "a").then(VALUE).otherwise(None), {"event_type": ["a"]}),
        (TYPE.replace_strict({"a": 1, "b": 2}, default=0), {"event_type": ["a", "b"]}),
        (
            pl.any_horizontal(pl.col("user_id") == "u", TYPE.str.contains("^b")),
            {"user_id": ["u"], "event_type": ["^b"]},
        ),
        (pl.lit(2) * 50 < VALUE, {"value": [1, 2, 3, 49, 50, 51]}),
        (pl.col("event_time").dt.hour() == 3, {}),
        (VALUE.rank().over("user_id"), {}),
        (float("inf") != VALUE, {}),
        (pl.len() > 1, {}),
    ],
)
def test_literals_go_to_the_columns_that_they_are_compared_with(
    expression: pl.Expr, expected: dict[str, list[object]]
) -> None:
    found = literals_in([expression])
    assert {name: sorted(values) for name, values in found.items()} == expected


def test_rare_values_are_generated_together_and_apart() -> None:
    literals = literals_in([(TYPE == "purchase") & (VALUE > 100)])
    events = generate_events(60, 3, literals)
    assert events.schema == generate_events(60, 3).schema
    both = events.select(TYPE == "purchase", VALUE > 50)
    assert min(both.group_by(pl.all()).len()["len"]) >= 3
    assert both.unique().height == 4
