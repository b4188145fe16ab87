"""Sawtooth windows: what is in them, and what is refused."""

import itertools
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TowerlineError
from data.aggregations import ALL_TIME, HOPS, LastN, Rate, RecencyWeighted, Window, days, hours

WINDOWS = (hours(1), hours(2), hours(6), days(1), days(2), days(7), days(14), days(30), days(90), days(364), days(728))
MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


@given(st.sampled_from(WINDOWS), MOMENTS, st.integers(0, 3 * 86_400_000_000_000))
def test_an_event_is_in_the_window_until_it_expires(window: Window, event: int, later: int) -> None:
    moment = event + later
    assert (window.begins_us(moment) <= event) == (moment < window.expires_us(event))
    assert event + window.length_us < window.expires_us(event) <= event + window.length_us + window.hop_us
    assert moment - window.length_us - window.hop_us < window.begins_us(moment) <= moment - window.length_us


@given(st.sampled_from(WINDOWS), st.lists(MOMENTS))
def test_arrays_are_treated_as_numbers_are(window: Window, events: list[int]) -> None:
    array = np.array(events, dtype=np.int64)
    assert window.expires_us(array).tolist() == [window.expires_us(event) for event in events]
    assert window.begins_us(array).tolist() == [window.begins_us(event) for event in events]


def test_each_hop_is_a_multiple_of_the_one_before() -> None:
    hops = [hop for _, hop in HOPS]
    assert all(not coarse % fine for fine, coarse in itertools.pairwise(hops))
    assert [length for length, _ in HOPS] == sorted(length for length, _ in HOPS)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (timedelta(minutes=30), "is not in 1:00:00 to 730 days"),
        (timedelta(days=731), "or take ALL_TIME"),
        (timedelta(hours=2, seconds=30), "no multiple of its hop 0:05:00; take 2:00:00 or 2:05:00"),
    ],
)
def test_windows_that_are_refused(length: timedelta, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        Window(length)


def test_other_parameters_that_are_refused() -> None:
    with pytest.raises(TowerlineError, match="a rate needs a finite window"):
        Rate(ALL_TIME)
    with pytest.raises(TowerlineError, match="a sequence has length 0"):
        LastN("item_id", 0)
    with pytest.raises(TowerlineError, match="a half-life of 0:00:01 is too short"):
        RecencyWeighted(timedelta(seconds=1))


def test_windows_have_names() -> None:
    assert [str(window) for window in (hours(1), hours(36), days(7), ALL_TIME)] == ["1 h", "36 h", "7 d", "all time"]
