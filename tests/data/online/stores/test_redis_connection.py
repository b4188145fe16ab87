"""A Redis that goes away and comes back, is full, or refuses."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cluster.errors import TowerlineError
from data.features import views
from data.online.stores import redis_connection
from data.online.stores.redis import RedisStore
from data.views import USER
from tests.data.conftest import events_of
from tests.data.online.stores.redis_stores import NOW, counted
from tests.data.servers import RedisServer

pytestmark = pytest.mark.cluster


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(redis_connection, "SOCKET_SECONDS", 0.3)


def test_a_server_that_comes_back_is_waited_for(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 120)
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


def test_a_frozen_server_applies_what_it_was_told_once(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 120)
    monkeypatch.setattr(redis_connection, "SOCKET_SECONDS", 0.3)
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


def test_a_password_that_is_wrong_is_said_and_not_shown(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
    store = RedisStore(server.url.replace("redis://", "redis://:secret@"), "small", views())
    monkeypatch.setattr(redis_connection, "PATIENCE_SECONDS", 600)
    began = time.monotonic()
    for call in (lambda: store.read(USER, ["anna"], NOW), store.published_version):
        with pytest.raises(TowerlineError, match=r"cannot be used .*TOWERLINE_ONLINE_STORE") as error:
            call()
        assert "secret" not in str(error.value)
    assert time.monotonic() - began < 300, "it was tried again"
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
