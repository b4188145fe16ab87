"""Publications to Redis beside each other and beside writers, and on a server that goes away."""

import multiprocessing
import threading
import time
from typing import Any

import polars as pl
import pytest
import redis

from cluster.errors import TowerlineError
from data.features import views
from data.online.materialization import bucket_states, tasks_of
from data.online.stores import redis_connection, redis_hold, redis_switch
from data.online.stores.redis import RedisStore
from data.online.stores.redis_connection import RedisConnection
from data.online.stores.redis_publication import RedisPublication
from data.online.stores.redis_version import Keys, VersionKeys
from data.views import USER
from tests.data.conftest import events_of
from tests.data.online.stores.redis_stores import NOW, DatasetOf, counted
from tests.data.servers import RedisServer

pytestmark = pytest.mark.cluster


def test_a_redis_that_would_drop_states_is_refused(server: RedisServer, dataset_of: DatasetOf) -> None:
    store = RedisStore(server.url, "small", views())
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(TowerlineError, match=r"maxmemory-policy 'allkeys-lru'.* set it to 'noeviction'"):
        store.publish(dataset_of(events_of([("anna", "x", 1.0, 1)])))
    store.close()


def test_a_server_that_goes_away_during_a_publication_is_waited_for(
    server: RedisServer, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 120)
    store = RedisStore(server.url, "small", views())
    dataset = dataset_of(events_of([(f"u{row % 17}", f"i{row % 5}", 1.0, row) for row in range(300)]))
    put_digest, calls = VersionKeys.put_digest, []

    def killing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) % 3 == 1 and len(calls) < 8:
            server.kill()
            restart = threading.Timer(0.3, server.start)
            restart.start()
            restarts.append(restart)
        put_digest(*arguments)

    restarts: list[threading.Timer] = []
    monkeypatch.setattr(VersionKeys, "put_digest", killing)
    assert store.publish(dataset) == 300
    assert len(restarts) == 3
    assert counted(store) == 300
    assert store.read(USER, ["u1"], NOW)["user_event_count"].to_list() == [18]
    store.close()


def test_nothing_of_an_old_version_stays(store: RedisStore, redis_url: str, dataset_of: DatasetOf) -> None:
    for number in range(3):
        store.publish(dataset_of(events_of([(f"u{number}", "x", float(number), 1)])))
    with redis.Redis.from_url(redis_url) as client:
        numbers = {key.split(b":")[2] for key in client.keys("towerline:small:*")}
    assert {each for each in numbers if each.isdigit()} == {b"3"}


def test_two_publications_at_once_count_every_bucket_once(
    store: RedisStore, redis_url: str, dataset_of: DatasetOf
) -> None:
    dataset = dataset_of(events_of([(f"u{row % 17}", f"i{row % 5}", 1.0, row) for row in range(300)]))
    stores = [RedisStore(redis_url, "small", views()) for _ in range(2)]
    threads = [threading.Thread(target=each.publish, args=(dataset,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert counted(store) == 300
    assert store.read(USER, ["u1"], NOW)["user_event_count"].to_list() == [18]
    for each in stores:
        each.close()


OLD, NEW = events_of([("anna", "x", 1.0, 1)]), events_of([("anna", "y", 1.0, 2), ("anna", "z", 1.0, 3)])

MEANWHILE = events_of([("anna", "meanwhile", 1.0, 9)])


@pytest.mark.parametrize("is_appending", [True, False])
def test_an_append_and_a_publication_at_once(
    store: RedisStore, redis_url: str, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch, is_appending: bool
) -> None:
    """One of them happens after the other has read and before it writes."""
    store.publish(dataset_of(OLD))
    other = RedisStore(redis_url, "small", views())
    whole = dataset_of(NEW)
    updated, calls = VersionKeys.updated, []

    def hooked(*arguments: Any) -> Any:
        found = updated(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            with redis.Redis.from_url(redis_url) as client:
                client.delete("towerline:small:held")
            assert other.publish(whole) == 2 if is_appending else other.append_events(MEANWHILE) == 1
        return found

    monkeypatch.setattr(VersionKeys, "updated", hooked)
    if is_appending:
        assert store.append_events(MEANWHILE) == 1
    else:
        assert store.publish(whole) == 3
    other.close()
    assert store.published_version() == whole.manifest.data_version
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y", "z", "meanwhile"]]
    assert (counted(store), store.appended_events().height) == (3, 1)
    with redis.Redis.from_url(redis_url) as client:
        assert client.hkeys("towerline:small:versions") == [b"2"]


def append_until(address: str, stop: threading.Event, done: "multiprocessing.Queue[tuple[int, float]]") -> None:
    store, number, longest = RedisStore(address, "small", views()), 0, 0.0
    while not stop.is_set():
        began = time.monotonic()
        store.append_events(events_of([(f"u{number % 50}", f"busy {number}", 1.0, number)]))
        longest, number = max(longest, time.monotonic() - began), number + 1
        if number == 1:
            done.put((1, longest))
    done.put((number, longest))


def test_publishing_beside_a_steady_writer(
    store: RedisStore, redis_url: str, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "BUSY_SECONDS", 120.0)
    monkeypatch.setattr(redis_switch, "ROWS_AT_ONCE", 2_000)
    log = events_of([(f"u{row % 50}", f"i{row % 70}", 1.0, row) for row in range(8_000)])
    for part in log.iter_slices(4_000):
        store.append_events(part)
    context = multiprocessing.get_context("spawn")
    stop, done = context.Event(), context.Queue()
    writer = context.Process(target=append_until, args=(redis_url, stop, done))
    writer.start()
    done.get(timeout=300)
    events = pl.concat([log[:3_000], events_of([("eva", "x", 1.0, 1)])])
    store.publish(dataset_of(events))
    store.publish(dataset_of(pl.concat([events, events_of([("eva", "y", 1.0, 2)])])))
    stop.set()
    appended, longest = done.get(timeout=300)
    writer.join(300)
    assert longest < 60
    assert store.appended_events().height == 5_000 + appended
    assert counted(store) == 8_002 + appended
    assert store.append_events(log) == 0


def test_a_hold_of_one_that_was_killed_ends(store: RedisStore, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_hold, "HOLD_SECONDS", 1)
    with redis.Redis.from_url(redis_url) as client:
        hold = redis_hold.Hold(RedisConnection(redis_url), Keys("small"))
        hold.__enter__()
        began = time.monotonic()
        assert store.append_events(OLD) == 1
        assert time.monotonic() - began > 0.5
        assert not client.exists("towerline:small:held")


def test_the_number_of_a_version_is_never_used_again(store: RedisStore, redis_url: str, dataset_of: DatasetOf) -> None:
    store.publish(dataset_of(OLD))
    with redis.Redis.from_url(redis_url) as client:
        client.delete("towerline:small:versions")
        store.append_events(MEANWHILE)
        assert client.hkeys("towerline:small:versions") == [b"2"]


def test_a_bucket_that_another_publication_wrote_is_left_alone(store: RedisStore, dataset_of: DatasetOf) -> None:
    """It may hold appended events by now."""
    dataset = dataset_of(NEW)
    late = RedisPublication(store._redis, store._keys, store._definitions)
    version = late._begun(dataset)
    buckets = list(bucket_states(dataset, store._definitions, tasks_of(dataset)))
    store.publish(dataset)
    store.append_events(MEANWHILE)
    for bucket in buckets:
        late._write(version, bucket)
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y", "z", "meanwhile"]]
    assert counted(store) == 3
