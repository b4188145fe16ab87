"""Appends wait for a transaction that takes longer than they do: it would never get its turn beside a steady writer."""

import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import redis.exceptions
from redis.client import Pipeline

from cluster.errors import TowerlineError
from data.online.stores.redis_connection import BUSY_SECONDS, RedisConnection
from data.online.stores.redis_version import Keys

HOLD_SECONDS = 5
"""How long appends wait at most for one that was killed."""

_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Hold:
    """While it lasts nothing is appended. Only one at a time.

    It is for speed: what is written meanwhile still has to watch what it depends on.
    """

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._key = keys.held
        self._name = uuid.uuid4().hex

    def renew(self, pipe: Pipeline) -> None:
        """Once more the whole time."""
        pipe.set(self._key, self._name, ex=HOLD_SECONDS)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + BUSY_SECONDS
        while not self._redis.patiently(self._take):
            if time.monotonic() > deadline:
                raise TowerlineError(
                    f"other publications held up the online store at {self._redis} for {BUSY_SECONDS:.0f} s; publish "
                    "again when they have ended"
                )
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(redis.exceptions.RedisError):
            self._redis.client.eval(_RELEASE, 1, self._key, self._name)

    def _take(self) -> bool:
        client: Any = self._redis.client
        return bool(client.set(self._key, self._name, ex=HOLD_SECONDS, nx=True)) or (
            client.get(self._key) == self._name.encode()
        )


def give_way(pipe: Pipeline, keys: Keys) -> None:
    """Raises WatchError, upon which a transaction is tried again, while there is a hold. To be watched: `keys.held`."""
    if pipe.exists(keys.held):
        raise redis.exceptions.WatchError("a publication writes")
