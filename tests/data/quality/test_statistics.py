import pickle
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.quality.statistics import ColumnSummary, Histogram, Statistics

START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = ["user_id", "value", "event_time", "attributes", "decision_id"]
SCHEMA = {
    "user_id": pl.String,
    "value": pl.Float32,
    "event_time": pl.Datetime("us", "UTC"),
    "attributes": pl.List(pl.String),
    "decision_id": pl.String,
    "source_row": pl.Int64,
}

rows = st.lists(
    st.tuples(
        st.sampled_from(["anna", "bert", "żółw", ""]) | st.text(max_size=4),
        st.floats(width=32) | st.none() | st.sampled_from([1.0, 2.0, 5.0]),
        st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2040, 1, 1), timezones=st.just(UTC)),
        st.lists(st.sampled_from(["kind=a", "kind=b"]), max_size=3) | st.none(),
        st.none() | st.just("d1"),
    ),
    max_size=30,
)


def table(drawn: list[tuple[object, ...]]) -> pl.DataFrame:
    numbered = [(*row, number) for number, row in enumerate(drawn)]
    return pl.DataFrame(numbered, schema=SCHEMA, orient="row")


@settings(deadline=None)
@given(rows, st.data())
def test_statistics_do_not_depend_on_how_rows_are_cut_or_added(
    drawn: list[tuple[object, ...]], data: st.DataObject
) -> None:
    whole = table(drawn)
    cuts = sorted(data.draw(st.lists(st.integers(0, whole.height), max_size=4)))
    ends = [0, *cuts, whole.height]
    parts = [Statistics.of(whole[low:high], COLUMNS) for low, high in pairwise(ends)]
    parts = data.draw(st.permutations(parts))
    expected = Statistics.of(whole, COLUMNS).summary()
    assert sum(parts, Statistics()).summary() == expected
    nested = parts[0] + sum(parts[1:], Statistics())
    assert nested.summary() == expected
    assert nested.rows == whole.height


def test_many_rows_cut_anyhow() -> None:
    """Enough for every limit to be passed: values, distinct values, bins."""
    count = 60_000
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "item_id": random.zipf(1.2, count).astype(str),
            "value": random.lognormal(3, 2, count),
            "source_row": np.arange(count),
        }
    )
    columns = ["item_id", "value"]
    whole = Statistics.of(frame, columns)
    cuts = [0, *sorted(random.integers(0, count, 9).tolist()), count]
    parts = [Statistics.of(frame[low:high], columns) for low, high in pairwise(cuts)]
    random.shuffle(parts)
    assert sum(parts, Statistics()).summary() == whole.summary()
    assert len(pickle.dumps(whole)) < 200_000


def test_figures_are_those_of_the_column() -> None:
    values = np.random.default_rng(1).normal(100, 5, 10_000)
    summary = Statistics.of(pl.DataFrame({"value": values}), ["value"]).summary()["value"]
    assert (summary.min, summary.max) == (values.min(), values.max())
    assert summary.mean == pytest.approx(values.mean(), rel=1e-14)
    assert summary.std == pytest.approx(values.std(), rel=1e-9)
    linear, logarithmic = summary.histograms
    assert sum(linear.counts) == sum(logarithmic.counts) == 10_000
    assert summary.histogram is linear
    edges = [linear.edge(position) for position in range(len(linear.counts) + 1)]
    assert np.histogram(values, edges)[0].tolist() == list(linear.counts)


def test_a_few_numbers_are_counted_one_by_one() -> None:
    frame = pl.DataFrame({"value": [5.0, 1.0, None, 5.0, float("nan"), float("inf"), -0.0]})
    summary = Statistics.of(frame, ["value"]).summary()["value"]
    assert [(entry.value, entry.count) for entry in summary.values] == [(0, 1), (1, 1), (5, 2)]
    assert (summary.count, summary.nulls, summary.not_finite, summary.mean) == (7, 1, 2, 2.75)


def test_times_are_counted_by_day() -> None:
    times = [START + timedelta(hours=hour) for hour in range(24 * 100)]
    summary = Statistics.of(pl.DataFrame({"t": times}), ["t"]).summary()["t"]
    assert (summary.min, summary.max) == (START, times[-1])
    [days] = summary.histograms
    assert days.at(0).counts == (24,) * 100
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=days.edge(0)) == START


def test_lists_count_their_elements() -> None:
    frame = pl.DataFrame({"a": [["x", "y"], [], None, ["x"]]})
    summary = Statistics.of(frame, ["a"]).summary()["a"]
    assert [(entry.value, entry.count) for entry in summary.values] == [("x", 2), ("y", 1)]
    assert (summary.count, summary.nulls, summary.distinct) == (4, 1, 2)
    assert summary.histograms[0].counts == (1, 1, 1)


def test_columns_without_a_value() -> None:
    frame = pl.DataFrame(
        {"text": [None], "number": [None], "nan": [float("nan")]},
        schema={"text": pl.String, "number": pl.Int64, "nan": pl.Float64},
    )
    summary = Statistics.of(frame, frame.columns).summary()
    assert [column.histogram for column in summary.values()] == [None, None, None]
    assert [column.distinct for column in summary.values()] == [0, 0, 1]
    assert Statistics.of(frame.clear(), frame.columns) == Statistics()


def test_a_summary_survives_json() -> None:
    drawn = [("anna", 1.5, START, ["kind=a"], None), ("bert", float("inf"), START, None, "d")]
    for column in Statistics.of(table(drawn), COLUMNS).summary().values():
        assert ColumnSummary.model_validate_json(column.model_dump_json()) == column


def test_wider_bins_hold_pairs() -> None:
    histogram = Histogram(scale="linear", level=0, first=-3, counts=(1, 2, 3, 4))
    assert histogram.at(1) == Histogram(scale="linear", level=1, first=-2, counts=(1, 5, 4))
    assert histogram.at(0) == histogram
    assert Histogram(scale="log", level=1, first=-1, counts=(1,)).edge(0) == -3
