"""What is particular to Redis: one server, several writers, and a server that goes away and comes back."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import redis

from cluster.errors import TowerlineError
from data.aggregations import Count, Mean, TimeSince, days, hours
from data.dataset import Dataset
from data.events import FIRST_APPENDED_ROW
from data.features import views
from data.online.materialization import bucket_states, tasks_of
from data.online.stores import redis_connection, redis_hold, redis_switch, redis_version
from data.online.stores.redis import RedisStore
from data.online.stores.redis_connection import RedisConnection
from data.online.stores.redis_publication import RedisPublication
from data.online.stores.redis_version import Keys, VersionKeys
from data.views import EVERYTHING, ITEM, USER, FeatureView
from tests.data.conftest import events_of
from tests.data.servers import RedisServer

pytestmark = pytest.mark.cluster

NOW = datetime(2024, 1, 2, tzinfo=UTC)
DatasetOf = Callable[[pl.DataFrame], Dataset]


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    store = RedisStore(redis_url, "small", views())
    yield store
    store.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that may be stopped."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(redis_connection, "SOCKET_SECONDS", 0.3)


def counted(store: RedisStore) -> int:
    return store.read(EVERYTHING, [""], NOW)["counted_events"].item()


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


def append_many(address: str, events: pl.DataFrame, started: threading.Event) -> None:
    store = RedisStore(address, "small", views())
    started.wait()
    for row in events.iter_slices(1):
        store.append_events(row)


def test_several_processes_write_and_none_is_lost(store: RedisStore, redis_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    shares = [events_of([(f"u{writer}", "x", 1.0, second) for second in range(15)]) for writer in range(2)]
    writers = [context.Process(target=append_many, args=(redis_url, share, started)) for share in shares]
    for writer in writers:
        writer.start()
    started.set()
    append_many(redis_url, events_of([("here", "x", 1.0, second) for second in range(15)]), started)
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert store.appended_events()["source_row"].n_unique() == 45
    assert store.read(USER, ["u0", "u1", "here"], NOW)["user_event_count"].to_list() == [15] * 3
    assert store.read(ITEM, ["x"], NOW)["item_event_count"].to_list() == [45]
    assert counted(store) == 45


def test_a_write_whose_answer_was_lost_is_not_made_twice(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, lost = redis.client.Pipeline.execute, []

    def losing(pipe: Any, *arguments: Any) -> Any:
        answer = execute(pipe, *arguments)
        if pipe.explicit_transaction or not lost:
            lost.append(answer)
            if len(lost) == 1:
                raise redis.ConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(redis.client.Pipeline, "execute", losing)
    assert store.append_events(events_of([("anna", "x", 1.0, 1), ("anna", "y", 1.0, 2)])) == 2
    assert len(lost) == 1
    assert (counted(store), store.appended_events().height) == (2, 2)


def test_a_server_that_comes_back_is_waited_for(server: RedisServer) -> None:
    store = RedisStore(server.url, "small", views())
    store.append_events(events_of([("anna", "x", 1.0, 1)]))
    for action in (lambda: store.append_events(events_of([("anna", "y", 1.0, 2)])), lambda: counted(store)):
        server.kill()
        restart = threading.Timer(0.7, server.start)
        restart.start()
        action()
        restart.join()
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["x", "y"]]
    assert store.seen_items(["anna"]) == [{"x", "y"}]
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_frozen_server_applies_what_it_was_told_once(server: RedisServer) -> None:
    store = RedisStore(server.url, "small", views())
    store.append_events(events_of([("anna", "x", 1.0, 1)]))
    for number in range(3):
        events = events_of([("anna", f"y{number}", 1.0, 2 + number)])
        thawing = threading.Timer(0.4, lambda: server.signal(signal.SIGCONT))
        server.signal(signal.SIGSTOP)
        thawing.start()
        assert store.append_events(events) == 1
        thawing.join()
    assert counted(store) == 4
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_away_is_one_clear_error(server: RedisServer) -> None:
    address = server.url.replace("redis://", "redis://:secret@")
    store = RedisStore(server.url, "small", views())
    store.append_events(events_of([("anna", "x", 1.0, 1)]))
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: store.read(USER, ["anna"], NOW),
        lambda: store.append_events(events_of([("anna", "y", 1.0, 2)])),
        store.published_version,
        lambda: RedisStore(address, "small", views()).fingerprints(),
    ]
    for call in calls:
        with pytest.raises(
            TowerlineError, match=r"store at redis://127.0.0.1:\d+/0 cannot .*TOWERLINE_ONLINE_STORE"
        ) as e:
            call()
        assert isinstance(e.value, ConnectionError)
    store.close()


def test_a_password_that_is_wrong_is_said_and_not_shown(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
    store = RedisStore(server.url.replace("redis://", "redis://:secret@"), "small", views())
    began = time.monotonic()
    for call in (lambda: store.read(USER, ["anna"], NOW), store.published_version):
        with pytest.raises(TowerlineError, match=r"cannot be used .*TOWERLINE_ONLINE_STORE") as error:
            call()
        assert "secret" not in str(error.value)
    assert time.monotonic() - began < 5
    right = RedisStore(server.url.replace("redis://", "redis://:right@"), "small", views())
    assert right.append_events(events_of([("anna", "x", 1.0, 1)])) == 1
    assert right.read(USER, ["anna"], NOW)["known"].item()
    right.close()


def test_a_full_redis_is_an_error_a_person_can_act_on(server: RedisServer) -> None:
    store = RedisStore(server.url, "small", views())
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(TowerlineError, match=r"\(command not allowed when used memory > .maxmemory.\.\)"):
        store.append_events(events_of([("anna", "x", 1.0, 1)]))
    store.close()


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
        thread.join(60)
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
    monkeypatch.setattr(redis_connection, "BUSY_SECONDS", 20.0)
    monkeypatch.setattr(redis_switch, "ROWS_AT_ONCE", 2_000)
    log = events_of([(f"u{row % 50}", f"i{row % 70}", 1.0, row) for row in range(8_000)])
    for part in log.iter_slices(4_000):
        store.append_events(part)
    context = multiprocessing.get_context("spawn")
    stop, done = context.Event(), context.Queue()
    writer = context.Process(target=append_until, args=(redis_url, stop, done))
    writer.start()
    done.get(timeout=60)
    events = pl.concat([log[:3_000], events_of([("eva", "x", 1.0, 1)])])
    store.publish(dataset_of(events))
    store.publish(dataset_of(pl.concat([events, events_of([("eva", "y", 1.0, 2)])])))
    stop.set()
    appended, longest = done.get(timeout=60)
    writer.join(60)
    assert longest < 10
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
        assert 0.5 < time.monotonic() - began < 5
        assert not client.exists("towerline:small:held")


def test_the_number_of_a_version_is_never_used_again(store: RedisStore, redis_url: str, dataset_of: DatasetOf) -> None:
    store.publish(dataset_of(OLD))
    with redis.Redis.from_url(redis_url) as client:
        client.delete("towerline:small:versions")
        store.append_events(MEANWHILE)
        assert client.hkeys("towerline:small:versions") == [b"2"]


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
    store.append_events(MEANWHILE)
    assert store.appended_events()["item_id"].to_list() == ["meanwhile"]


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
