"""Cells are exact integers, whatever the values and the order."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.aggregations import ALL_TIME, Count, Mean, Rate, Sum, days, hours
from data.temporal.cells import CellPlan, Cells, Input, decayed_weights, to_fixed_point
from data.views import USER, FeatureView

VIEW = FeatureView(
    name="view",
    entity=USER,
    description="",
    owner="",
    features={
        "events": Count(),
        "events_1d": Count(days(1)),
        "sum": Sum("value"),
        "mean_1d": Mean("value", days(1), default=-1.0),
        "rate": Rate(hours(2)),
    },
)
PLAN = CellPlan(VIEW)


def finished(plan: CellPlan, cells: Cells) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The features (rows, features) of rows of cells."""
    return np.stack([ratio.finish(list(cells.T)).astype(np.float64) for ratio in plan.ratios], axis=1)


@given(st.lists(st.floats(width=32), max_size=20), st.randoms())
def test_sums_are_the_same_in_any_order(values: list[float], random: "st.randoms") -> None:
    added = to_fixed_point(np.array(values, dtype=np.float64))
    shuffled = random.sample(values, len(values))
    assert added.sum() == to_fixed_point(np.array(shuffled, dtype=np.float64)).sum()


def test_what_cannot_be_added_up_is_cut() -> None:
    values = np.array([1.5, float("nan"), float("inf"), -3e38, 2.0**-18])
    assert to_fixed_point(values).tolist() == [98_304, 0, 10**9 * 2**16, -(10**9) * 2**16, 0]


def test_inputs() -> None:
    events = pl.DataFrame({"value": [1.0, None, -2.0], "flag": [True, None, False]})
    assert Input().of(events).tolist() == [1, 1, 1]
    assert Input("value").of(events).tolist() == [1, 0, 1]
    assert Input("value", is_sum=True).of(events).tolist() == [65_536, 0, -131_072]
    assert Input("flag", is_sum=True).of(events).tolist() == [65_536, 0, 0]
    assert decayed_weights(events, None).tolist() == [1.0, 1.0, 1.0]
    assert decayed_weights(events, "value").tolist() == [1.0, 0.0, -2.0]


def test_nan_counts_like_null() -> None:
    events = pl.DataFrame({"value": [4.0, float("nan"), None], "whole": [1, 2, 3], "nan": [float("nan"), 1.0, 1.0]})
    assert Input("value").of(events).tolist() == [1, 0, 0]
    assert Input("nan").of(events).tolist() == [0, 1, 1]
    assert Input("value", is_sum=True).of(events).tolist() == [4 * 65_536, 0, 0]
    inputs = [Input(), Input("whole"), Input("value"), Input("nan"), Input("whole", is_sum=True)]
    assert [each.is_one(events) for each in inputs] == [True, True, False, False, False]


def test_a_plan_has_each_window_and_input_once() -> None:
    assert PLAN.windows == (hours(2), days(1), ALL_TIME)
    assert PLAN.inputs == (Input(), Input("value", is_sum=True), Input("value"))
    assert [ratio.feature for ratio in PLAN.ratios] == list(VIEW.features)
    assert PLAN.index(days(1), Input("value")) == 5


def test_finished_features() -> None:
    cells = np.zeros((2, 9), dtype=np.int64)
    for window, each, value in [
        (ALL_TIME, Input(), 8),
        (days(1), Input(), 4),
        (hours(2), Input(), 3),
        (ALL_TIME, Input("value", is_sum=True), 20 * 2**16),
        (days(1), Input("value", is_sum=True), 10 * 2**16),
        (days(1), Input("value"), 4),
    ]:
        cells[0, PLAN.index(window, each)] = value
    assert finished(PLAN, cells).tolist() == [[8, 4, 20.0, 2.5, 1.5], [0, 0, 0.0, -1.0, 0.0]]
    assert finished(PLAN, np.zeros((0, 9), dtype=np.int64)).shape == (0, 5)


def test_only_means_and_sums_need_more_than_a_count() -> None:
    view = FeatureView(name="v", entity=USER, description="", owner="", features={"a": Count(), "b": Count(days(7))})
    assert CellPlan(view).inputs == (Input(),)
    assert finished(CellPlan(view), np.array([[1, 2]])).tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("count", [1, 1_000])
def test_a_mean_of_equal_values_is_that_value(count: int) -> None:
    cells = np.zeros((1, 9), dtype=np.int64)
    cells[0, PLAN.index(days(1), Input("value", is_sum=True))] = to_fixed_point(np.full(count, 3.5)).sum()
    cells[0, PLAN.index(days(1), Input("value"))] = count
    assert finished(PLAN, cells)[0, 3] == 3.5
