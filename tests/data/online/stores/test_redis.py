"""What is particular to Redis: one round trip, several writers, and states that expire."""

from datetime import timedelta

import pytest
import redis

from data.aggregations import Count, Mean, TimeSince, days, hours
from data.events import FIRST_APPENDED_ROW
from data.online.stores import redis_version
from data.online.stores.redis import RedisStore
from data.views import EVERYTHING, ITEM, USER, FeatureView
from tests.data.conftest import events_of
from tests.data.online.stores.redis_stores import NOW, DatasetOf

pytestmark = pytest.mark.cluster


def test_a_read_is_one_round_trip(store: RedisStore, redis_url: str, dataset_of: DatasetOf) -> None:
    store.publish(dataset_of(events_of([(f"u{row}", "x", 1.0, row) for row in range(50)])))
    ids = [f"u{row}" for row in range(50)]
    store.read(USER, ids, NOW)
    with redis.Redis.from_url(redis_url) as client:
        before = client.info("commandstats")
        assert store.read(USER, ids, NOW)["known"].all()
        after = client.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: count for name, count in calls.items() if count and name != "cmdstat_info"} == {"cmdstat_mget": 1}


def test_values_longer_than_a_buffer_and_ids_of_any_kind(store: RedisStore) -> None:
    users = ["long", "Ж\r\n$5\r\n", "\0", " "]
    rows = [(user, f"{'item' * 900} {row}", 1.0, row) for user in users for row in range(50)]
    store.append_events(events_of(rows))
    found = store.read(USER, [*users, "nobody"] * 3, NOW)
    assert found["user_event_count"].to_list() == [50, 50, 50, 50, 0] * 3
    assert found["history_items"].list.len().to_list() == [50, 50, 50, 50, 0] * 3


def test_only_states_that_no_feature_needs_any_more_expire(redis_url: str, dataset_of: DatasetOf) -> None:
    described = {"name": "v", "description": "", "owner": ""}
    day = timedelta(days=1)
    windowed = {"hour": Count(hours(1)), "mean": Mean("value", days(7)), "since": TimeSince()}
    passing = FeatureView(entity=USER, features=windowed, ttl=day, **described)
    lasting = FeatureView(entity=ITEM, features={**windowed, "all": Count()}, ttl=day, **described)
    endless = FeatureView(entity=EVERYTHING, features={"hour": Count(hours(1))}, **described)
    store = RedisStore(redis_url, "small", (passing, lasting, endless))
    store.publish(dataset_of(events_of([("anna", "x", 1.0, 1)])))
    store.append_events(events_of([("eva", "y", 1.0, 1)]))
    with redis.Redis.from_url(redis_url) as client:
        left = {name: client.ttl(f"towerline:small:1:{name}") for name in ("user:anna", "user:eva", "item:x", "item:y")}
        everything = client.ttl("towerline:small:1:everything:")
    assert (left["item:x"], left["item:y"], everything) == (-1, -1, -1)
    longest = days(7).length_us / 1e6 + 3 * 3600
    assert all(longest - 60 <= left[name] <= longest for name in ("user:anna", "user:eva"))
    store.close()


def test_only_the_part_of_the_log_that_is_there_is_asked_for(
    store: RedisStore, redis_url: str, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_version, "ROWS_AT_ONCE", 3)
    log = events_of([("anna", f"i{row}", 1.0, row) for row in range(10)])
    store.append_events(log)
    assert store.appended_events()["item_id"].to_list() == [f"i{row}" for row in range(10)]
    for kept, oldest in ((log[:7], 7), (log, 10)):
        store.publish(dataset_of(kept))
        with redis.Redis.from_url(redis_url) as client:
            assert int(client.hget("towerline:small:counters", "oldest")) == FIRST_APPENDED_ROW + oldest
        assert store.appended_events().height == 10 - kept.height
    store.append_events(events_of([("anna", "meanwhile", 1.0, 99)]))
    assert store.appended_events()["item_id"].to_list() == ["meanwhile"]
