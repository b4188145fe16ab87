"""From a Redis stream to readable online features: events per second sustained, and how late they are.

    python -m benchmarks.stream_to_online

Sustained: the stream holds `BACKLOG` events, which are read, validated and stored with the features that they change.
Delay: `PACE` events a second are sent for some seconds; it ends when an event is stored, and from then on it is read.
"""

import json
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import redis

from benchmarks.events import EventStream
from benchmarks.redis_server import redis_server
from data.features import views
from data.online.store import OnlineStore
from data.online.stores.redis import RedisStore
from data.online.stores.sqlite import SqliteStore
from data.online.stream_progress import StreamProgress
from data.online.stream_quarantine import StreamQuarantine
from data.online.streaming import Follower
from data.quality.validation import EventRules
from data.schema import EVENT_ID, EVENT_TYPE, ITEM_ID, USER_ID, VALUE
from data.sources.stream import open_stream

BACKLOG = 40_000
PACE = 400
PACED_SECONDS = 8
FIELDS = (EVENT_ID, USER_ID, ITEM_ID, EVENT_TYPE, VALUE)


def measure() -> dict[str, float]:
    """Figures of a report: `events_per_s/stream_to_online/sqlite`, `p99_ms/stream_to_online/redis`, …"""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="towerline-bench-") as folder, redis_server(Path(folder)) as server:
        stores: dict[str, OnlineStore] = {
            "sqlite": SqliteStore(Path(folder) / "online.db", views()),
            "redis": RedisStore(server.address, "bench", views()),
        }
        for name, store in stores.items():
            backlog = _messages(BACKLOG)
            with redis.Redis.from_url(server.address) as client:
                _send(client, f"{name}-backlog", backlog)
                sustained = _follower(Path(folder), server.address, f"{name}-backlog", store).run(until_empty=True)
                paced = _paced(client, _follower(Path(folder), server.address, f"{name}-paced", store), f"{name}-paced")
            figures |= {
                f"events_per_s/stream_to_online/{name}": sustained.events_per_second,
                f"p50_ms/stream_to_online/{name}": paced.delay_ms(50),
                f"p99_ms/stream_to_online/{name}": paced.delay_ms(99),
            }
            store.close()
    return figures


def _follower(folder: Path, address: str, stream: str, store: OnlineStore) -> Follower:
    rules = EventRules(datetime.now(UTC), {}, None, "interaction")
    source = open_stream(f"{address}?stream={stream}", rules)
    return Follower(source, store.append_events, StreamQuarantine(folder / "quarantine"))


def _paced(client: "redis.Redis", follower: Follower, stream: str) -> StreamProgress:
    """Follow while events come in steadily."""
    thread = threading.Thread(target=follower.run)
    thread.start()
    messages = _messages(PACE * PACED_SECONDS, seed=1)
    begin = time.monotonic()
    for number, message in enumerate(messages):
        time.sleep(max(0.0, begin + number / PACE - time.monotonic()))
        client.xadd(stream, {"event": message})
    while follower.progress.messages < len(messages) and thread.is_alive():
        time.sleep(0.05)
    follower.stop.set()
    thread.join()
    return follower.progress


def _messages(count: int, seed: int = 0) -> list[str]:
    """Events of now, as JSON."""
    now = datetime.now(UTC).isoformat()
    return [
        json.dumps({**{name: row[name] for name in FIELDS}, EVENT_ID: f"{seed}-{row[EVENT_ID]}", "event_time": now})
        for frame in EventStream(count, seed).frames()
        for row in frame.iter_rows(named=True)
    ]


def _send(client: "redis.Redis", stream: str, messages: list[str]) -> None:
    with client.pipeline(transaction=False) as pipe:
        for message in messages:
            pipe.xadd(stream, {"event": message})
        pipe.execute()


if __name__ == "__main__":
    for figure, value in measure().items():
        print(f"{figure:<60} {value:12.2f}")
