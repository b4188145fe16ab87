import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from tests.train.letters import asking, events_of, letters
from train.models.interactions import histories, interactions


def test_a_pair_counts_once_however_often_they_met() -> None:
    met_UI = interactions(events_of("abab", "c"), letters("abc"))
    assert met_UI.dtype == np.float32
    np.testing.assert_array_equal(met_UI.toarray(), [[0, 1, 1, 0], [0, 0, 0, 1]])


def test_the_last_items_that_a_user_met_are_kept() -> None:
    """`a` was met first and last, so that `b` is the oldest of three."""
    met_UI = interactions(events_of("abca", "b"), letters("abc"), newest=2)
    np.testing.assert_array_equal(met_UI.toarray(), [[0, 1, 0, 1], [0, 0, 1, 0]])


def test_items_without_a_code_are_left_out() -> None:
    met_UI = interactions(events_of("xa", "x", "b"), letters("ab"))
    np.testing.assert_array_equal(met_UI.toarray(), [[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("words", [(), ("xyz", "x")])
def test_events_of_other_items_are_refused(words: tuple[str, ...]) -> None:
    events = events_of(*words)
    with pytest.raises(TowerlineError, match=rf"none of the {events.height} training events names one of the 2 items"):
        interactions(events, letters("ab"))


def test_a_history_counts_less_the_older_it_is() -> None:
    weights_BI = histories(asking("abc", "", "c"), letters("abc"), half_life=1.0)
    np.testing.assert_array_equal(weights_BI.toarray(), [[0, 0.25, 0.5, 1], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert weights_BI.dtype == np.float32


def test_without_a_half_life_all_of_a_history_counts_the_same() -> None:
    weights_BI = histories(asking("aba"), letters("abc"), half_life=None)
    np.testing.assert_array_equal(weights_BI.toarray(), [[0, 1, 1, 0]])


def test_an_item_met_again_has_the_age_of_its_newest_event_and_strangers_age_others() -> None:
    weights_BI = histories(asking("aba", "ax"), letters("abc"), half_life=1.0)
    np.testing.assert_array_equal(weights_BI.toarray(), [[0, 1, 0.5, 0], [0, 0.5, 0, 0]])


def test_nobody_has_no_history() -> None:
    assert histories(asking(), letters("abc"), half_life=5.0).shape == (0, 4)
    no_lists = pl.DataFrame({"history_items": [None]}, schema={"history_items": pl.List(pl.String)})
    assert histories(no_lists.with_columns(pl.col("history_items").fill_null([])), letters("a"), 1.0).nnz == 0
