"""What the models read online at a moment is what the batch computed for that moment."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data.dataset import Dataset
from data.features import USER_WINDOW_COLUMNS, user_windows, with_sequence
from data.online_store import OnlineStore
from serve.batch import Batch, Call
from serve.stages.features import Features
from serve.variant import Variant

NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def features(shop_variant: Variant, shop_store: OnlineStore) -> Features:
    return Features(shop_variant, shop_store)


def batch(*calls: Call, at: datetime = NOW) -> Batch:
    return Batch(calls, at)


def test_online_equals_the_batch_at_the_moment_of_every_event(
    features: Features, shop: Dataset, shop_variant: Variant
) -> None:
    """The last of the events that share a time is the one that has seen all before it; compare there."""
    windows = user_windows(with_sequence(shop.events()), shop_variant.history_length)
    for moment in windows["event_time"].unique().to_list()[::7]:
        users = windows.filter(pl.col("event_time") < moment)["user_id"].unique(maintain_order=True).to_list()
        rows = features.run(batch(*(Call("d", user, 5) for user in users), at=moment)).users
        later = windows.filter(pl.col("event_time") >= moment).unique("user_id", keep="first", maintain_order=True)
        at_once = later.filter(pl.col("event_time") == moment)
        alone = at_once.join(windows.filter(pl.col("event_time") == moment).group_by("user_id").len(), on="user_id")
        offline = alone.filter(pl.col("len") == 1).select("user_id", *USER_WINDOW_COLUMNS)
        online = offline.select("user_id").join(rows.select("user_id", *USER_WINDOW_COLUMNS), on="user_id", how="left")
        # Online at that very moment the event itself has been stored: take the moment just before it.
        before = features.run(
            batch(*(Call("d", user, 5) for user in offline["user_id"]), at=moment - timedelta(microseconds=1))
        ).users
        columns = [name for name in USER_WINDOW_COLUMNS if name != "user_seconds_since_last"]
        assert_frame_equal(before.select("user_id", *columns), offline.select("user_id", *columns))
        assert online.height == offline.height


def test_a_user_nobody_knows_has_an_empty_history(features: Features) -> None:
    done = features.run(batch(Call("d", "nobody", 5)))
    row = done.users.row(0, named=True)
    assert (row["history_items"], row["user_event_count"], row["user_mean_value"]) == ([], 0, 0.0)
    assert row["user_attributes"] == []
    assert done.known == (False,)
    assert done.seen == (frozenset(),)


def test_a_user_known_by_attributes_alone_is_known(features: Features, shop_store: OnlineStore, tmp_path: Path) -> None:
    store = OnlineStore(tmp_path / "s.db")
    assert store.user_attributes(["user 1"]).is_empty()
    done = features.run(batch(Call("d", "user 1", 5), at=datetime(2000, 1, 1, tzinfo=UTC)))
    assert shop_store.user_attributes(["user 1"]).height == 1
    assert done.known == (True,)
    assert done.users["user_attributes"].to_list() == [["age=1"]]
    assert done.users["user_event_count"].to_list() == [0]


def test_two_requests_of_one_user_are_two_histories(features: Features) -> None:
    done = features.run(
        batch(Call("a", "user 2", 5, ("item-1", "item-2")), Call("b", "user 2", 5), Call("c", "user 2", 5, ("item-3",)))
    )
    with_two, plain, with_one = done.users["history_items"].to_list()
    assert with_two[-2:] == ["item-1", "item-2"]
    assert with_one[-1] == "item-3"
    assert with_one[:-1] == plain[1:]
    counts = done.users["user_event_count"].to_list()
    assert counts == [counts[1] + 2, counts[1], counts[1] + 1]
    assert done.seen[0] - done.seen[1] <= {"item-1", "item-2"}


def test_recent_items_count_as_liked_as_the_user_likes_things(features: Features) -> None:
    plain = features.run(batch(Call("a", "user 2", 5))).users
    brought = features.run(batch(Call("a", "user 2", 5, ("item-1",)))).users
    assert brought["user_mean_value"].to_list() == pytest.approx(plain["user_mean_value"].to_list())
    assert brought["history_values"].list.last().to_list() == pytest.approx(plain["user_mean_value"].to_list())
    new = features.run(batch(Call("a", "nobody", 5, ("item-1",)))).users
    assert 1 <= new["history_values"].list.last().to_list()[0] <= 5


def test_what_happens_later_is_not_seen(features: Features, shop: Dataset) -> None:
    moment = shop.events().filter(pl.col("user_id") == "user 4")["event_time"].sort()[5]
    done = features.run(batch(Call("d", "user 4", 5), at=moment))
    earlier = shop.events().filter((pl.col("user_id") == "user 4") & (pl.col("event_time") <= moment))
    assert done.users["user_event_count"].to_list() == [earlier.height]
    assert done.seen == (frozenset(earlier["item_id"]),)


def test_a_batch_is_its_requests_one_by_one(features: Features) -> None:
    calls = [Call(str(n), f"user {n % 5}", 5, ("item-1",) * (n % 2)) for n in range(8)]
    together = features.run(batch(*calls))
    alone = pl.concat([features.run(batch(call)).users for call in calls])
    assert_frame_equal(together.users, alone)
