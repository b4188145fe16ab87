from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import TowerlineError
from data.splits import assign_splits, count_held_out_users, protocol_hash, require_users

raw_rows = st.lists(
    st.tuples(st.sampled_from(["a", "b", "ç ç"]), st.sampled_from("xyz"), st.just(1.0), st.integers(0, 4)), max_size=25
)


@settings(max_examples=100, deadline=None)
@given(rows=raw_rows)
def test_last_event_is_test_the_one_before_validates(rows: list, make_events: Callable[..., pl.DataFrame]) -> None:
    table = assign_splits(make_events(rows).reverse())
    assert assign_splits(table.drop("split")).equals(table)
    in_order = sorted(range(len(rows)), key=lambda row: (rows[row][3], row))
    assert table["source_row"].to_list() == in_order
    for user in ("a", "b", "ç ç"):
        splits = table.filter(user_id=user)["split"].to_list()
        count = len(splits)
        expected = ["train"] * (count - 2) + ["validation", "test"] if count >= 3 else ["train"] * count
        assert splits == expected


def test_too_few_users_is_refused_with_the_numbers(make_events: Callable[..., pl.DataFrame]) -> None:
    events = make_events([("a", "x", 1, second) for second in range(5)] + [("b", "x", 1, 1), ("b", "y", 1, 2)])
    with pytest.raises(TowerlineError, match=r"at least 2 users with 3 or more.*has 1 \(of 2 users\); ingest more"):
        require_users(count_held_out_users(events), 2, events["user_id"].n_unique())
    require_users(count_held_out_users(events), 1, events["user_id"].n_unique())


def test_the_hash_of_the_protocol_follows_its_words() -> None:
    assert protocol_hash() == protocol_hash()
    assert protocol_hash() != protocol_hash("last event per user, ties at random")
