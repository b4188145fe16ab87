"""Redis Streams on a real server: what was sent is handled once, whoever dies in between."""

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources import redis_group
from data.sources.redis_streams import RedisStream
from data.sources.stream import StreamAwayError, open_stream
from tests.data.consumer import Store, consume, event, follower, following, quarantined, start_consumer
from tests.data.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def address(redis_url: str) -> str:
    return f"{redis_url}?stream=shop&group=test"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        yield connected


def send(client: redis.Redis, numbers: range) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in numbers:
        pipeline.xadd("shop", {"event": event(number)})
    pipeline.execute()


def source(address: str) -> RedisStream:
    opened = open_stream(address, EventRules(datetime.now(UTC)))
    assert isinstance(opened, RedisStream)
    return opened


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_a_stream_is_read_up_to_now_and_again(
    client: redis.Redis, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.redis_streams.MESSAGES_PER_CHUNK", 4)
    send(client, range(9))
    client.xadd("shop", {"event": b"nonsense"})
    client.xadd("shop", {"user_id": "a", "item_id": "flat", "event_time": "2024-01-01"})
    (part,) = source(address).parts()
    send(client, range(20))
    for _ in range(2):
        chunks = list(part.chunks())
        assert [item for chunk in chunks for item in chunk.rows["item_id"]] == [*numbers(9), "flat"]
        assert [line for chunk in chunks for line in chunk.lines] == [*range(1, 10), 11]
        assert [row.line for chunk in chunks for row in chunk.broken] == [10]
    assert chunks[0].rows.columns == source(address).columns()


def test_an_empty_stream_is_said(address: str, tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match="shop is empty: it has no messages"):
        source(address).parts()
    assert consume(address, tmp_path).messages == 0


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StreamAwayError, match=r"does not answer .*; start the server, or correct the address"):
        consume("redis://127.0.0.1:1/0?stream=shop", tmp_path)


def test_a_stream_that_is_something_else_is_said(client: redis.Redis, address: str, tmp_path: Path) -> None:
    client.set("shop", "a string")
    with pytest.raises(TowerlineError, match="WRONGTYPE"):
        consume(address, tmp_path)


def test_a_backlog_is_handled_once(client: redis.Redis, address: str, tmp_path: Path) -> None:
    send(client, range(20_000))
    progress = consume(address, tmp_path)
    assert Store(tmp_path).items() == numbers(20_000)
    assert (progress.handled, progress.duplicates) == (20_000, 0)
    assert consume(address, tmp_path).messages == 0
    assert client.xpending("shop", "test")["pending"] == 0
    assert client.xinfo_consumers("shop", "test") == []


def test_an_event_is_handled_within_a_second(client: redis.Redis, address: str, tmp_path: Path) -> None:
    with following(address, tmp_path) as running:
        for number in range(20):
            send(client, range(number, number + 1))
            time.sleep(0.02)
        wait_until(lambda: running.progress.handled == 20)
    assert running.progress.delay_ms(50) < 1_000


def test_two_members_share_the_stream(client: redis.Redis, address: str, tmp_path: Path) -> None:
    with following(address, tmp_path) as one, following(address, tmp_path) as two:
        for start in range(0, 2_000, 20):
            send(client, range(start, start + 20))
        wait_until(lambda: one.progress.handled + two.progress.handled == 2_000)
    assert one.progress.handled > 0
    assert two.progress.handled > 0
    assert one.progress.duplicates + two.progress.duplicates == 0
    assert Store(tmp_path).items() == numbers(2_000)


def test_killed_between_store_and_commit_nothing_is_lost_or_double(
    client: redis.Redis, address: str, tmp_path: Path
) -> None:
    send(client, range(2_200))
    killed = start_consumer(f"{address}&member=one", tmp_path, "--die-after", "2100")
    assert killed.wait(300) == -signal.SIGKILL
    assert client.xpending("shop", "test")["pending"] == 200
    assert start_consumer(f"{address}&member=one", tmp_path).wait(300) == 0
    assert Store(tmp_path).items() == numbers(2_200)
    assert client.xpending("shop", "test")["pending"] == 0
    assert quarantined(tmp_path) == []


def test_what_a_dead_member_left_is_taken_over(
    client: redis.Redis, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_group, "IDLE_MS", 300)
    send(client, range(50))
    dead = source(f"{address}&member=dead").subscribe()
    assert len(dead.take(20, 1)) == 20
    progress = consume(f"{address}&member=heir", tmp_path)
    assert (progress.handled, progress.duplicates) == (50, 0)
    assert Store(tmp_path).items() == numbers(50)


def test_what_a_live_member_works_on_is_not_taken_over(
    client: redis.Redis, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_group, "IDLE_MS", 2_000)
    monkeypatch.setattr(redis_group, "SEARCH_SECONDS", 0.01)
    send(client, range(5))
    busy, other = source(f"{address}&member=busy").subscribe(), source(f"{address}&member=other").subscribe()
    taken = busy.take(10, 1)
    for _ in range(8):
        time.sleep(0.3)
        busy.keep()
        assert other.take(10, 0.01) == []
    counts = [entry["times_delivered"] for entry in client.xpending_range("shop", "test", "-", "+", 10)]
    assert counts == [1] * 5
    busy.commit(taken)
    assert other.waiting() == 0


def test_poison_goes_to_quarantine_and_the_stream_goes_on(client: redis.Redis, address: str, tmp_path: Path) -> None:
    send(client, range(10))
    client.xadd("shop", {"event": event(0, item_id="poison")})
    client.xadd("shop", {"event": b"\xff\x00"})
    client.xadd("shop", {"event": event(0, event_time="yesterday")})
    send(client, range(10, 20))
    progress = consume(address, tmp_path)
    assert Store(tmp_path).items() == numbers(20)
    rules = [record["rule"] for record in quarantined(tmp_path)]
    assert sorted(map(str, rules)) == [
        "event_time is not a time in the years 1 to 9999",
        "it makes the handler fail: OverflowError: too much",
        "not UTF-8",
    ]
    assert progress.quarantined == 3
    assert client.xpending("shop", "test")["pending"] == 0


def test_a_message_that_kills_its_consumer_is_found_and_given_up_after_three_tries_alone(
    client: redis.Redis, address: str, tmp_path: Path
) -> None:
    send(client, range(30))
    deaths = 0
    while start_consumer(f"{address}&member=one", tmp_path, "--die-at", "13").wait(300) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10
    assert deaths == 4 + 3
    assert Store(tmp_path).items() == [item for item in numbers(30) if item != "13"]
    (record,) = quarantined(tmp_path)
    assert (record["rule"], record["tries"]) == ("its consumer died whenever it was tried", 3)


def test_a_server_that_is_restarted_in_the_middle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url)
        send(client, range(500))
        with following(f"{server.url}?stream=shop", tmp_path) as running:
            wait_until(lambda: running.progress.handled == 500)
            server.kill()
            time.sleep(1.5)
            server.start()
            send(client, range(500, 1_000))
            wait_until(lambda: running.progress.handled == 1_000)
        client.close()
    assert Store(tmp_path).items() == numbers(1_000)
    said = [record.getMessage() for record in caplog.records if "is away" in record.getMessage()]
    assert len(said) == 1


def test_a_server_that_is_killed_again_and_again_under_load(tmp_path: Path) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url)
        send(client, range(30_000))
        with following(f"{server.url}?stream=shop", tmp_path) as running:
            for share in (2_000, 9_000, 16_000):
                wait_until(lambda share=share: running.progress.handled > share)  # type: ignore[misc]
                server.kill()
                server.start()
            wait_until(lambda: len(Store(tmp_path).items()) == 30_000)
        client.close()
    assert Store(tmp_path).items() == numbers(30_000)
    assert quarantined(tmp_path) == []


def test_a_server_that_keeps_nothing_begins_anew(client: redis.Redis, address: str, tmp_path: Path) -> None:
    send(client, range(5))
    with following(address, tmp_path) as running:
        wait_until(lambda: running.progress.handled == 5)
        client.flushall()
        send(client, range(5, 9))
        wait_until(lambda: running.progress.handled == 9)
    assert Store(tmp_path).items() == numbers(9)


def test_a_frozen_server_is_waited_for(
    redis_server: RedisServer, client: redis.Redis, address: str, tmp_path: Path
) -> None:
    send(client, range(5))
    with following(address, tmp_path) as running:
        wait_until(lambda: running.progress.handled == 5)
        redis_server.signal(signal.SIGSTOP)
        time.sleep(1)
        redis_server.signal(signal.SIGCONT)
        send(client, range(5, 9))
        wait_until(lambda: running.progress.handled == 9)
    assert Store(tmp_path).items() == numbers(9)


def test_a_member_that_was_stopped_leaves_nothing_behind(client: redis.Redis, address: str, tmp_path: Path) -> None:
    send(client, range(5))
    running = follower(address, tmp_path)
    running.stop.set()
    assert running.run().messages == 0
    assert client.xinfo_consumers("shop", "test") == []
    assert not (tmp_path / "quarantine").exists()
