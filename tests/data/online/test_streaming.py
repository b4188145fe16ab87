"""The consumer's loop over a stream in memory: batches, poison, and how it ends."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data.expectations import Expectations
from data.online import streaming
from data.online.streaming import TRIES, Batching, Follower
from data.quality.rules import Range
from data.sources.stream import Message
from tests.data.fake_stream import SENT, FakeStore, FakeStream, message, quarantined


def test_events_are_handed_over_in_order_and_then_committed(follow: Callable[..., Follower]) -> None:
    stream, store = FakeStream([message(number) for number in range(5)]), FakeStore()
    progress = follow(stream, store).run(until_empty=True)
    assert store.batches == [["i0", "i1", "i2", "i3", "i4"]]
    assert stream.committed == ["0", "1", "2", "3", "4"]
    assert stream.closed
    assert (progress.handled, progress.duplicates, progress.quarantined) == (5, 0, 0)
    assert progress.delay_ms(50) > 900
    event = next(iter(store.events.values()))
    assert event["event_id"] == stream.messages[0].key
    assert event["ingest_time"] is None
    assert "source_row" not in event


def test_a_batch_is_complete_by_count(follow: Callable[..., Follower]) -> None:
    stream, store = FakeStream([message(number) for number in range(4)], per_take=1), FakeStore()
    follow(stream, store, batching=Batching(2, 60_000)).run(until_empty=True)
    assert [len(batch) for batch in store.batches] == [2, 2]


def test_a_batch_is_complete_by_time(follow: Callable[..., Follower]) -> None:
    stream, store = FakeStream([message(number) for number in range(3)], per_take=1), FakeStore()
    follow(stream, store, batching=Batching(1_000, 0)).run(until_empty=True)
    assert [len(batch) for batch in store.batches] == [1, 1, 1]


def test_the_same_event_twice_is_one_event(follow: Callable[..., Follower]) -> None:
    stream, store = (
        FakeStream([message(0), message(1, event_id="e"), message(2, event_id="e"), message(0)]),
        FakeStore(),
    )
    progress = follow(stream, store).run(until_empty=True)
    assert store.items == ["i0", "i1"]
    assert (progress.handled, progress.duplicates) == (4, 2)


def test_what_breaks_the_contract_is_quarantined_with_its_rule(follow: Callable[..., Follower], tmp_path: Path) -> None:
    not_json = Message("shop", 0, "1", b"\xff{", SENT)
    future = message(2, event_time=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    stream, store = FakeStream([message(0), not_json, future, message(3, user_id=""), message(4)]), FakeStore()
    progress = follow(stream, store).run(until_empty=True)
    assert store.items == ["i0", "i4"]
    found = quarantined(tmp_path)
    assert {position: record["rule"] for position, record in found.items()} == {
        "shop/0/1": "not UTF-8",
        "shop/0/2": "event_time is in the future",
        "shop/0/3": "user_id is empty",
    }
    assert found["shop/0/1"]["raw_base64"] == "/3s="
    assert json.loads(str(found["shop/0/3"]["raw"]))["item_id"] == "i3"
    assert (progress.handled, progress.quarantined) == (2, 3)
    assert sorted(stream.committed) == ["0", "1", "2", "3", "4"]


def test_what_is_not_expected_is_quarantined(follow: Callable[..., Follower], tmp_path: Path) -> None:
    stream, store = FakeStream([message(0, value=1), message(1, value=7)]), FakeStore()
    expectations = Expectations(rules=(Range(column="value", min=0, max=5),))
    follow(stream, store, expectations=expectations).run(until_empty=True)
    assert store.items == ["i0"]
    assert "0..5" in str(quarantined(tmp_path)["shop/0/1"]["rule"])


def test_a_fast_clock_of_a_producer_is_set_right(follow: Callable[..., Follower]) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    store = FakeStore()
    follow(FakeStream([message(0, event_time=soon)]), store).run(until_empty=True)
    assert next(iter(store.events.values()))["event_time"] <= datetime.now(UTC)


def test_poison_is_tried_three_times_alone_and_its_neighbours_go_first(
    follow: Callable[..., Follower], tmp_path: Path
) -> None:
    stream, store = FakeStream([message(number) for number in range(8)]), FakeStore("i2", "i5")
    progress = follow(stream, store).run(until_empty=True)
    assert store.items == ["i0", "i1", "i3", "i4", "i6", "i7"]
    assert store.batches.count(["i2"]) == store.batches.count(["i5"]) == TRIES
    assert max(map(store.batches.index, (["i3"], ["i4"], ["i6", "i7"]))) < len(store.batches) - 4
    found = quarantined(tmp_path)
    assert list(found) == ["shop/0/2", "shop/0/5"]
    assert found["shop/0/2"]["rule"] == "it makes the handler fail: OverflowError: too much"
    assert found["shop/0/2"]["tries"] == TRIES
    assert (progress.handled, progress.quarantined) == (6, 2)
    assert sorted(stream.committed) == [str(number) for number in range(8)]


def test_a_message_that_fails_once_is_no_poison(follow: Callable[..., Follower], tmp_path: Path) -> None:
    stream, store = FakeStream([message(0)]), FakeStore()
    store.errors = [OverflowError(), OverflowError()]
    follow(stream, store).run(until_empty=True)
    assert store.items == ["i0"]
    assert quarantined(tmp_path) == {}


@pytest.mark.parametrize(("deliveries", "tries"), [(1, 3), (5, 3), (6, 2), (7, 1), (8, 0)])
def test_tries_alone_before_a_crash_count(
    follow: Callable[..., Follower], tmp_path: Path, deliveries: int, tries: int
) -> None:
    store = FakeStore("i0")
    stream = FakeStream([message(0, deliveries=deliveries), message(1)], per_take=1)
    follow(stream, store).run(until_empty=True)
    assert store.batches.count(["i0"]) == tries
    assert quarantined(tmp_path)["shop/0/0"]["tries"] == TRIES
    assert store.items == ["i1"]


def test_what_may_have_killed_its_consumers_is_handled_alone(follow: Callable[..., Follower]) -> None:
    stream = FakeStream([message(0, deliveries=3), message(1), message(2)], per_take=1)
    store = FakeStore()
    follow(stream, store, batching=Batching(1_000, 200)).run(until_empty=True)
    assert store.batches[0] == ["i0"]


def test_a_handler_that_refuses_everything_is_at_fault_itself(
    follow: Callable[..., Follower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "REFUSALS_IN_A_ROW", 5)
    stream = FakeStream([message(number) for number in range(9)])
    store = FakeStore(*(f"i{number}" for number in range(9)))
    with pytest.raises(OverflowError):
        follow(stream, store).run(until_empty=True)
    assert stream.committed == []
    assert stream.closed
    assert quarantined(tmp_path) == {}


def test_an_empty_stream_ends_at_once_or_waits(follow: Callable[..., Follower]) -> None:
    stop = threading.Event()
    assert follow(FakeStream([]), FakeStore()).run(until_empty=True).messages == 0
    waiting = threading.Thread(target=follow(FakeStream([]), FakeStore(), stop=stop).run)
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    stop.set()
    waiting.join(120)
    assert not waiting.is_alive()


def test_when_it_is_stopped_it_finishes_and_commits_what_it_has(follow: Callable[..., Follower]) -> None:
    stop, store = threading.Event(), FakeStore()
    stream = FakeStream([message(number) for number in range(4)])

    def stopping(events: pl.DataFrame) -> int:
        stop.set()
        return FakeStore.append_events(store, events)

    store.append_events = stopping  # type: ignore[method-assign]
    follow(stream, store, stop=stop, batching=Batching(2, 0)).run()
    assert store.items == ["i0", "i1"]
    assert stream.committed == ["0", "1"]
