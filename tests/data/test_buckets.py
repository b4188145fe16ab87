import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.buckets import bucket_of, buckets_for, split_by_bucket, with_bucket


@pytest.mark.parametrize(
    ("events", "buckets"),
    [(0, 4), (1, 4), (1_000_000, 4), (1_000_001, 8), (10_000_000, 64), (50_000_000, 256)],
)
def test_a_power_of_two_of_about_equal_files(events: int, buckets: int) -> None:
    assert buckets_for(events) == buckets


@given(ids=st.lists(st.text()), power=st.integers(0, 8))
def test_frames_and_single_ids_agree_and_buckets_nest(ids: list[str], power: int) -> None:
    frame = pl.DataFrame({"user_id": pl.Series(ids, dtype=pl.String)})
    bucketed = with_bucket(frame, "user_id", 2**power)["bucket"].to_list()
    assert bucketed == [bucket_of(user, 2**power) for user in ids]
    assert bucketed == [zlib.crc32(user.encode()) % 2 ** (power + 3) % 2**power for user in ids]


def test_splitting_keeps_order_and_every_row() -> None:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame({"item_id": [str(item) for item in rng.integers(0, 50, 500)], "n": range(500)})
    parts = split_by_bucket(frame, "item_id", 8)
    assert pl.concat(parts.values()).sort("n").equals(frame)
    for bucket, part in parts.items():
        assert part["n"].is_sorted()
        assert {bucket_of(item, 8) for item in part["item_id"]} == {bucket}
