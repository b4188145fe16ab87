"""Which events keys see, in the awkward cases: many late ones, more keys than are looked at together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.aggregations import hours
from data.temporal import visibility as under_test
from data.temporal.timeline import Timeline, sort_moments
from data.temporal.visibility import visibility

NEVER = 2**63 - 1


def timeline_of(codes: list[int], times: list[int], rows: list[int]) -> Timeline:
    return sort_moments(*(np.array(each, dtype=np.int64) for each in (codes, times, rows)), 3).timeline


events = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 12)), max_size=40)
"""entity, time, delay"""
keys = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 24)), max_size=20)


@settings(max_examples=150, deadline=None)
@given(events, keys, st.integers(1, 5))
def test_what_each_key_sees(raw: list[tuple[int, int, int]], asked: list[tuple[int, int]], length: int) -> None:
    rows = sorted((code, time, row, time + delay) for row, (code, time, delay) in enumerate(raw))
    asked = sorted(asked)
    past = timeline_of([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    moments = timeline_of([key[0] for key in asked], [key[1] for key in asked], [NEVER] * len(asked))
    seen = visibility(past, moments, np.array([row[3] for row in rows], dtype=np.int64))
    expected = [
        [at for at, row in enumerate(rows) if row[0] == code and row[3] <= now and row[1] <= now] for code, now in asked
    ]
    assert seen.count.tolist() == [len(each) for each in expected]
    assert seen.newest.tolist() == [each[-1] if each else -1 for each in expected]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(under_test, "KEYS_AT_ONCE", 3)
        parts = list(seen.last(length, np.ones(len(asked), dtype=np.bool_)))
    found = [part[0][one:two].tolist() for part in parts for one, two in zip(part[1], part[1][1:], strict=False)]
    assert found == [each[-length:] for each in expected]


def test_events_that_nobody_misses_are_not_late() -> None:
    past = timeline_of([0, 0], [10, 20], [0, 1])
    moments = timeline_of([0], [30], [NEVER])
    assert len(visibility(past, moments, np.array([30, 25])).late) == 0
    assert len(visibility(past, moments, np.array([31, 25])).late) == 1


def test_a_long_backlog_is_skipped_over() -> None:
    """One known event, then many that arrive at the end: the one is found without looking at each of the others."""
    count = 20_000
    past = timeline_of([0] * count, list(range(count)), list(range(count)))
    ingested = np.full(count, count)
    ingested[0] = 0
    moments = timeline_of([0] * count, list(range(1, count + 1)), [NEVER] * count)
    seen = visibility(past, moments, ingested)
    positions, offsets = next(seen.last(3, np.ones(count, dtype=np.bool_)))
    assert np.diff(offsets).tolist() == [1] * (count - 1) + [3]
    assert positions.tolist() == [0] * (count - 1) + [count - 3, count - 2, count - 1]


def test_expiry_is_a_key_of_the_same_entity() -> None:
    window = hours(1)
    past = timeline_of([0, 1], [0, 0], [0, 1])
    expiry = window.expires_us(0)
    moments = timeline_of([0, 0, 1], [expiry - 1, expiry, expiry - 1], [NEVER] * 3)
    seen = visibility(past, moments, np.array([0, 0]))
    assert seen.expiry(window, np.array([0, 1])).tolist() == [1, 3]
