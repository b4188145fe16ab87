"""The consumer's loop when a server is away, a store fails or a disk is full."""

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from cluster.errors import TowerlineError
from data.online.streaming import TRIES, Follower
from data.sources.stream import StreamAwayError
from tests.data.fake_stream import FakeStore, FakeStream, message, quarantined


def caused(error: TowerlineError, cause: Exception) -> TowerlineError:
    error.__cause__ = cause
    return error


def busy() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


@pytest.mark.parametrize(
    "error",
    [
        StreamAwayError("gone"),
        ConnectionError("gone"),
        redis.ConnectionError("gone"),
        caused(TowerlineError("gone"), redis.TimeoutError()),
        caused(TowerlineError("gone"), busy()),
    ],
    ids=repr,
)
def test_what_is_away_is_waited_for_and_said_once(
    follow: Callable[..., Follower], caplog: pytest.LogCaptureFixture, tmp_path: Path, error: Exception
) -> None:
    caplog.set_level(logging.INFO)
    stream, store = FakeStream([message(0), message(1)]), FakeStore()
    store.errors = [error] * 4
    progress = follow(stream, store).run(until_empty=True)
    assert store.items == ["i0", "i1"]
    assert store.batches == [["i0", "i1"]] * 5
    assert stream.kept == 4
    assert (progress.handled, progress.duplicates) == (2, 0)
    assert quarantined(tmp_path) == {}
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "the store is away (gone); waiting for it"
    assert said[1].startswith("the store is back after ")
    assert len(said) == 2


@pytest.mark.parametrize("cause", [redis.AuthenticationError(), OSError(28, "full"), ValueError()], ids=repr)
def test_what_waiting_does_not_help_is_not_waited_for(follow: Callable[..., Follower], cause: Exception) -> None:
    stream, store = FakeStream([message(0)]), FakeStore()
    store.errors = [caused(TowerlineError("no"), cause)]
    with pytest.raises(TowerlineError, match="no"):
        follow(stream, store).run(until_empty=True)
    assert stream.committed == []


def test_a_stream_that_is_away_is_waited_for(follow: Callable[..., Follower]) -> None:
    stream, store = FakeStream([message(0)], errors=[StreamAwayError("gone")] * 3), FakeStore()
    follow(stream, store).run(until_empty=True)
    assert stream.committed == ["0"]


def test_what_only_a_person_can_put_right_stops_it_with_nothing_committed(
    follow: Callable[..., Follower], tmp_path: Path
) -> None:
    stream, store = FakeStream([message(0), message(1)]), FakeStore()
    store.errors = [TowerlineError("the disk is full")]
    with pytest.raises(TowerlineError, match="the disk is full"):
        follow(stream, store).run(until_empty=True)
    assert stream.committed == []
    assert stream.closed
    assert quarantined(tmp_path) == {}


def failed(kind: type[sqlite3.Error], text: str, code: int) -> sqlite3.Error:
    error = kind(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "error",
    [
        failed(sqlite3.OperationalError, "disk I/O error", sqlite3.SQLITE_IOERR_WRITE),
        failed(sqlite3.DatabaseError, "database disk image is malformed", sqlite3.SQLITE_CORRUPT),
        sqlite3.OperationalError("database or disk is full"),
        redis.AuthenticationError("wrong password"),
        OSError(5, "Input/output error"),
    ],
    ids=repr,
)
def test_a_store_that_fails_stops_it_with_nothing_committed(
    follow: Callable[..., Follower], tmp_path: Path, error: Exception
) -> None:
    """Whatever message it fails on: waiting or quarantine would not help."""
    stream, store = FakeStream([message(0), message(1)]), FakeStore()
    store.errors = [error]
    with pytest.raises(TowerlineError, match=r"fake://shop: the store failed \(.*\); .* start it again") as raised:
        follow(stream, store).run(until_empty=True)
    assert raised.value.__cause__ is error
    assert store.batches == [["i0", "i1"]]
    assert (stream.committed, stream.closed) == ([], True)
    assert quarantined(tmp_path) == {}


@pytest.mark.parametrize("error", [sqlite3.DataError("too big"), sqlite3.IntegrityError(), redis.DataError()], ids=repr)
def test_what_a_message_may_do_to_a_store_is_its_fault(
    follow: Callable[..., Follower], tmp_path: Path, error: Exception
) -> None:
    stream, store = FakeStream([message(0)]), FakeStore()
    store.errors = [error] * TRIES
    follow(stream, store).run(until_empty=True)
    assert list(quarantined(tmp_path)) == ["shop/0/0"]
    assert stream.committed == ["0"]


def test_a_quarantine_on_a_full_disk_loses_nothing(
    follow: Callable[..., Follower], tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    bad = [message(number, user_id="") for number in range(1, 10)]
    stream, store = FakeStream([message(0), *bad]), FakeStore()
    limit_files(100)
    with pytest.raises(TowerlineError, match=r"partition-0.jsonl: the file would be larger .*; raise the limit"):
        follow(stream, store).run(until_empty=True)
    assert stream.committed == []
    limit_files(-1)
    progress = follow(stream, store).run(until_empty=True)
    assert len(quarantined(tmp_path)) == progress.quarantined == 9
    assert (store.items, progress.duplicates) == (["i0"], 1)
    assert stream.committed == [str(number) for number in range(10)]


def test_when_it_is_stopped_it_does_not_wait_for_what_is_away(follow: Callable[..., Follower]) -> None:
    stop = threading.Event()
    stop_soon = threading.Timer(0.05, stop.set)
    stream, store = FakeStream([message(0)]), FakeStore()
    store.errors = [ConnectionError()] * 100_000
    stop_soon.start()
    progress = follow(stream, store, stop=stop).run()
    assert progress.handled == 0
    assert stream.committed == []
    assert stream.closed
