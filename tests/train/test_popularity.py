from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.train.letters import NOTHING, START, asking, events_of, letters
from train.models.popularity import Popularity, PopularityConfig
from train.vocabulary import UNKNOWN


def fitted(config: PopularityConfig, *words: str) -> Popularity:
    popularity = Popularity(config)
    popularity.fit(events_of(*words), letters("abcd"))
    return popularity


def test_popularity_is_the_number_of_events_ties_by_code() -> None:
    popularity = fitted(PopularityConfig(), "cc", "cb", "db")
    first, second = popularity.recommend(asking("", "c"), [NOTHING, np.array([3])], 4).tolist()
    assert first == [3, 2, 4, 1]
    assert second == [2, 4, 1, UNKNOWN]


def test_overall_popularity_has_no_moment() -> None:
    popularity = fitted(PopularityConfig(), "abb")
    assert popularity.recommend(asking("", day=-10), [NOTHING], 1).tolist() == [[2]]


def test_a_window_forgets_and_does_not_foresee() -> None:
    """The days of the events: a 0, a 1, b 2, c 3, c 4."""
    popularity = fitted(PopularityConfig(window_days=3), "aabcc")
    expected = {0: [0, 0, 0, 0], 2: [2, 0, 0, 0], 3: [2, 1, 0, 0], 4.5: [0, 1, 1 + 1, 0], 9: [0, 0, 0, 0]}
    for day, counts in expected.items():
        np.testing.assert_array_equal(popularity.scores(asking("", day=day))[0, 1:], counts, err_msg=str(day))


def test_an_old_event_counts_half_after_a_half_life() -> None:
    popularity = fitted(PopularityConfig(half_life_days=2), "ab")
    np.testing.assert_allclose(popularity.scores(asking("", day=4))[0], [0, 0.25, 0.5**1.5, 0, 0])
    np.testing.assert_allclose(popularity.scores(asking("", day=1))[0], [0, 0.5**0.5, 0, 0, 0])


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 4)), min_size=1, max_size=30),
    hours=st.lists(st.integers(-10, 500), min_size=1, max_size=6),
    is_window=st.booleans(),
    days=st.floats(0.1, 30),
)
def test_one_pass_gives_what_each_row_gives_by_itself(
    events: list[tuple[int, int]], hours: list[int], is_window: bool, days: float
) -> None:
    config = PopularityConfig(window_days=days) if is_window else PopularityConfig(half_life_days=days)
    popularity = Popularity(config)
    frame = pl.DataFrame(
        {
            "item_id": ["abcd"[code - 1] for _, code in events],
            "event_time": [START + timedelta(hours=hour) for hour, _ in events],
        }
    )
    popularity.fit(frame, letters("abcd"))
    found = popularity.scores(pl.DataFrame({"event_time": [START + timedelta(hours=hour) for hour in hours]}))
    for scores_I, hour in zip(found, hours, strict=True):
        expected_I = np.zeros(5)
        for when, code in events:
            age = (hour - when) / 24
            if age > 0:
                expected_I[code] += age <= days if is_window else 0.5 ** (age / days)
        np.testing.assert_allclose(scores_I, expected_I, rtol=1e-5, atol=1e-12)


def test_times_before_the_epoch_are_times() -> None:
    popularity = Popularity(PopularityConfig(half_life_days=0.01))
    early = events_of("ab").with_columns(pl.col("event_time") - timedelta(days=40_000))
    popularity.fit(early, letters("abcd"))
    scores = popularity.scores(asking("", day=-39_998.999))
    np.testing.assert_allclose(scores[0, 2], 0.5**0.1, rtol=1e-4)
    assert np.isfinite(scores).all()


def test_half_life_and_window_are_alternatives() -> None:
    with pytest.raises(ValidationError, match="half_life_days and window_days are both set"):
        PopularityConfig(half_life_days=1, window_days=1)
