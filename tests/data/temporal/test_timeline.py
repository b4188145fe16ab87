"""Positions among sorted moments against a plain search, also where an entity and a moment do not fit one integer."""

import bisect

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.temporal import timeline
from data.temporal.timeline import encode, sort_moments

ENTITIES = 4
ENDS_OF_CALENDAR = (-62_135_596_800_000_000, 253_402_300_799_999_999)

moments = st.tuples(
    st.integers(0, ENTITIES - 1),
    st.one_of(st.integers(-5, 5), st.integers(-(2**40), 2**40), st.sampled_from(ENDS_OF_CALENDAR)),
    st.integers(-1, 3),
)


def columns(rows: list[tuple[int, int, int]]) -> list[np.ndarray]:
    return [np.array([row[column] for row in rows], dtype=np.int64) for column in range(3)]


@pytest.mark.parametrize("bits", [62, 30, 4])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=st.lists(moments, max_size=20), asked=st.lists(moments, max_size=8))
def test_lower_bounds_equal_a_plain_search(
    bits: int, known: list[tuple[int, int, int]], asked: list[tuple[int, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timeline, "_COMBINED_BITS", bits)
        line = sort_moments(*columns(known), ENTITIES).timeline
        assert list(zip(*(part.tolist() for part in (line.codes, line.times, line.rows)), strict=True)) == sorted(known)
        codes, times, rows = columns(asked)
        found = line.lower_bound(codes, times, rows).tolist()
        assert found == [bisect.bisect_left(sorted(known), moment) for moment in asked]
        of_times = line.lower_bound(codes, times).tolist()
        assert of_times == [bisect.bisect_left(sorted(known), moment[:2]) for moment in asked]
        assert line.starts.tolist() == [bisect.bisect_left(sorted(known), (code,)) for code in range(ENTITIES + 1)]


@given(st.lists(moments, max_size=20))
def test_rows_go_back_to_where_they_were(rows: list[tuple[int, int, int]]) -> None:
    found = sort_moments(*columns(rows), ENTITIES)
    frame = pl.DataFrame({"row": range(len(rows))}, schema={"row": pl.Int64})
    assert found.restored(found.frame(frame)).equals(frame)
    if rows == sorted(rows):
        assert found.order is None


@given(st.lists(st.sampled_from(["a", "b", "", None, "ö"])), st.lists(st.sampled_from(["a", "c", None])))
def test_codes_are_dense_and_the_same_in_all_columns(one: list[str | None], two: list[str | None]) -> None:
    codes, count = encode(pl.Series(one, dtype=pl.String), pl.Series(two, dtype=pl.String))
    expected = {value: code for code, value in enumerate(dict.fromkeys([*one, *two]))}
    assert count == len(expected)
    assert [code.tolist() for code in codes] == [[expected[value] for value in column] for column in (one, two)]


@pytest.mark.parametrize("values", [[1.5, float("nan"), 1.5, float("nan")], [1, 2, 1, 2], [True, False, True, False]])
def test_codes_of_any_type(values: list[object]) -> None:
    (codes,), count = encode(pl.Series(values))
    assert codes.tolist() == [0, 1, 0, 1]
    assert count == 2
