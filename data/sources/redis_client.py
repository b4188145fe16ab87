"""What reading and following a Redis stream have in common: the client, and what entries and errors mean."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.errors import TowerlineError
from data.moments import LATEST_US
from data.sources.stream import Message, StreamAwayError

ANSWER_SECONDS = 10.0
"""A server that has not answered for so long is away."""
JSON_FIELD = b"event"
"""Field of an entry that holds the event as JSON."""
EARLIEST_MS = 946_684_800_000
"""The year 2000: an entry id that begins with less is no time."""


def connected(url: str) -> redis.Redis:
    """A client that tries once: who waits for the server decides how."""
    try:
        return redis.Redis.from_url(
            url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise TowerlineError(f"the address of the Redis server is wrong: {error}") from error


@contextmanager
def explaining(name: str) -> Iterator[None]:
    """Turn the client's errors into StreamAwayError if waiting may help, else into TowerlineError."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        if isinstance(error, redis.AuthenticationError):
            raise TowerlineError(f"{name}: {error}; correct user and password in the address") from error
        raise StreamAwayError(f"{name} does not answer ({error}); start the server, or correct the address") from error
    except redis.RedisError as error:
        raise TowerlineError(f"{name}: {error}") from error


def message_of(stream: str, entry: bytes, fields: Mapping[bytes, bytes], deliveries: int = 1) -> Message:
    """An entry as a message. An entry without a field `event` is taken as the event's fields themselves."""
    raw = fields.get(JSON_FIELD)
    if raw is None:
        flat = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in fields.items()}
        raw = json.dumps(flat, ensure_ascii=False).encode()
    milliseconds = int(entry.partition(b"-")[0])
    known = EARLIEST_MS <= milliseconds <= LATEST_US // 1_000
    time = datetime.fromtimestamp(milliseconds / 1_000, UTC) if known else None
    return Message(stream, None, entry.decode(), raw, time, deliveries)
