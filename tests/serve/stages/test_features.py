"""What the models read online at a moment is what the batch computed for that moment."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data.dataset import Dataset, write_dataset
from data.features import NEVER, TIME, user_activity
from data.online.brought import brought_events
from data.online.store import OnlineStore
from data.temporal.point_in_time import features_of
from serve.batch import Batch, Call
from serve.stages.features import Features
from serve.variant import Variant
from tests.serve.conftest import HISTORY, USERS, published

NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def features(shop_variant: Variant, shop_store: OnlineStore) -> Features:
    return Features(shop_variant.catalogue, shop_store)


def batch(*calls: Call, at: datetime = NOW) -> Batch:
    return Batch(calls, at)


def test_online_equals_the_batch(features: Features, shop: Dataset) -> None:
    """At moments after the last event, when one window after another empties."""
    for age in (timedelta(), timedelta(minutes=61), timedelta(days=2), timedelta(days=40)):
        moment = shop.manifest.last_event_time + age
        users = [*USERS, "nobody"]
        online = features.run(batch(*(Call("d", user, 5) for user in users), at=moment)).users
        keys = pl.DataFrame({"user_id": users}).with_columns(
            pl.lit(moment).cast(TIME).alias("event_time"), pl.lit(NEVER).alias("source_row")
        )
        offline = features_of([user_activity(HISTORY)], shop.events(), keys).drop("event_time", "source_row")
        assert_frame_equal(online.select(offline.columns), offline)


def test_a_user_nobody_knows_has_an_empty_history(features: Features) -> None:
    done = features.run(batch(Call("d", "nobody", 5)))
    row = done.users.row(0, named=True)
    assert (row["history_items"], row["user_event_count"], row["user_mean_value"]) == ([], 0, 0.0)
    assert row["user_attributes"] == []
    assert done.known == (False,)
    assert done.seen == (frozenset(),)


def test_a_user_known_by_attributes_alone_is_known(shop: Dataset, shop_variant: Variant, tmp_path: Path) -> None:
    described = pl.DataFrame({"user_id": ["quiet"], "attributes": [["age=9"]]})
    with_quiet = write_dataset(
        tmp_path,
        "shop",
        events=shop.events(),
        items=shop.items(),
        users=pl.concat([shop.users(), described]),
        quarantine=shop.quarantine(),
        source="made up",
    )
    done = Features(shop_variant.catalogue, published(with_quiet, tmp_path)).run(batch(Call("d", "quiet", 5)))
    assert done.known == (True,)
    assert done.users["user_attributes"].to_list() == [["age=9"]]
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
    assert done.users["known_until"].n_unique() == 1
    assert done.seen[0] - done.seen[1] <= {"item-1", "item-2"}


def test_recent_items_count_as_liked_as_the_user_likes_things(features: Features) -> None:
    plain = features.run(batch(Call("a", "user 2", 5))).users
    brought = features.run(batch(Call("a", "user 2", 5, ("item-1",)))).users
    assert brought["user_mean_value"].to_list() == pytest.approx(plain["user_mean_value"].to_list())
    assert brought["history_values"].list.last().to_list() == pytest.approx(plain["user_mean_value"].to_list())
    new = features.run(batch(Call("a", "nobody", 5, ("item-1",)))).users
    assert 1 <= new["history_values"].list.last().to_list()[0] <= 5


def test_recent_items_are_events_of_this_moment(features: Features, shop: Dataset) -> None:
    """What the request brings along goes through the code that events go through."""
    done = features.run(batch(Call("a", "user 2", 5, ("item-1", "item-2", "unknown item"))))
    (value,) = done.users["brought_value"]
    assert done.users["brought_items"].to_list() == [["item-1", "item-2"]]
    brought = brought_events("user 2", ["item-1", "item-2"], value, NOW)
    keys = pl.DataFrame({"user_id": ["user 2"]}).with_columns(
        pl.lit(NOW).cast(TIME).alias("event_time"), pl.lit(NEVER).alias("source_row")
    )
    events = pl.concat([shop.events().select(brought.columns), brought])
    offline = features_of([user_activity(HISTORY)], events, keys).drop("event_time", "source_row")
    assert_frame_equal(done.users.select(offline.columns), offline)
    assert {"item-1", "item-2"} < done.seen[0]


def test_feedback_counts_at_once(shop_variant: Variant, own_store: OnlineStore, shop: Dataset) -> None:
    features = Features(shop_variant.catalogue, own_store)
    before = features.run(batch(Call("a", "user 2", 5)))
    event = shop.events()[:1].select(pl.exclude("source_row", "split", "ingest_time"))
    event = event.with_columns(event_id=pl.lit("new"), user_id=pl.lit("user 2"), event_time=pl.lit(NOW).cast(TIME))
    assert own_store.append_events(event) == 1
    after = features.run(batch(Call("a", "user 2", 5), at=datetime.now(UTC)))
    (count,) = before.users["user_event_count"]
    assert after.users["user_event_count"].to_list() == [count + 1]
    assert after.users["known_until"][0] > before.users["known_until"][0]
    assert after.everything["counted_events"] == before.everything["counted_events"] + 1


def test_a_batch_is_its_requests_one_by_one(features: Features) -> None:
    calls = [Call(str(n), f"user {n % 5}", 5, ("item-1",) * (n % 2)) for n in range(8)]
    together = features.run(batch(*calls))
    alone = pl.concat([features.run(batch(call)).users for call in calls])
    assert_frame_equal(together.users, alone)
