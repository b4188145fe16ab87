import re
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from data.quality.column_card import FLOOR, MOST_BARS, MOST_DAYS, column_card
from data.quality.statistics import ColumnSummary, Statistics

START = datetime(2024, 1, 1, tzinfo=UTC)


def summary(values: object) -> ColumnSummary:
    return Statistics.of(pl.DataFrame({"x": values}), ["x"]).summary()["x"]


def heights(card: str) -> list[float]:
    return [float(height) for height in re.findall(r'class="bar".*?height="([\d.]+)"', card)]


def test_a_few_numbers_have_a_bar_each_with_their_name() -> None:
    card = column_card("value", summary([1.0] * 10 + [2.0] * 40 + [5.0] * 20))
    assert heights(card) == pytest.approx([(FLOOR - 6) / 4, FLOOR - 6, (FLOOR - 6) / 2], abs=0.01)
    assert re.findall(r"<text.*?>(.*?)</text>", card) == ["1", "2", "5"]
    assert "<title>2: 40</title>" in card


def test_many_numbers_are_taken_together() -> None:
    bars = heights(column_card("value", summary(np.random.default_rng(0).normal(0, 1, 5000))))
    assert MOST_BARS / 4 < len(bars) <= MOST_BARS


def test_times_have_a_bar_for_each_day() -> None:
    card = column_card("t", summary([START + timedelta(days=day) for day in range(MOST_DAYS)]))
    assert len(heights(card)) == MOST_DAYS
    assert "<title>2024-02-29 to 2024-03-01: 1</title>" in card
    assert ">2024-01-01</text>" in card
    card = column_card("t", summary([START + timedelta(hours=hour) for hour in range(24)]))
    assert "<title>2024-01-01 00:00 to 2024-01-01 00:45: 1</title>" in card


def test_texts_show_what_is_most_frequent_and_their_lengths() -> None:
    card = column_card("item_id", summary(["often"] * 50 + [f"item {number}" for number in range(50)]))
    assert "most frequent" in card
    assert "50.0%" in card
    assert re.findall(r"<title>(\d+): (\d+)</title>", card) == [("5", "50"), ("6", "10"), ("7", "40")]


def test_a_column_of_ids_is_said_to_be_one() -> None:
    assert "every value once" in column_card("event_id", summary([str(number) for number in range(100)]))


def test_estimates_are_said_to_be_some() -> None:
    texts = [str(number // 2) if number % 4 else "u" for number in range(30_000)]
    frame = pl.DataFrame({"user_id": texts, "source_row": range(30_000)})
    card = column_card("user_id", Statistics.of(frame, ["user_id"]).summary()["user_id"])
    assert "estimated from a sample" in card
    assert "about " in card
    assert re.search(r"2[3-7]\.\d%", card), "a quarter is u"


def test_the_reference_is_drawn_beside_in_shares() -> None:
    card = column_card("value", summary([1.0] * 10 + [2.0] * 10), summary([2.0] * 500 + [3.0] * 500))
    assert 'class="before"' in card
    assert re.findall(r"<text.*?>(.*?)</text>", card) == ["1", "2", "3"]
    assert f'd="M0 {FLOOR}V{FLOOR:.2f}H106.67V6.00H213.33V6.00H320.00V{FLOOR}"' in card
    assert "reference" in column_card("kind", summary(["a", "b"]), summary(["a", "a"]))


def test_a_column_that_changed_its_nature_can_be_drawn() -> None:
    many = summary(np.random.default_rng(0).normal(0, 1, 5000))
    few, none = summary([1.0, 2.0]), summary(pl.Series([None], dtype=pl.Float64))
    for now, before in ((many, few), (few, many), (none, few), (few, none), (many, none)):
        assert "<article" in column_card("value", now, before)


def test_odd_numbers_can_be_drawn() -> None:
    for values in ([0.0], [1e308, -1e308] * 50, [5e-324], [float("nan")], [float("inf"), 1.0]):
        assert "<article" in column_card("value", summary(values))
