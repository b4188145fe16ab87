"""Calls to a Redis that may go away and come back: again after a while, then one clear error; nothing done twice."""

import random
import time
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from cluster.errors import TowerlineError
from data.online.stores.redis_mget import FastMget, UnusualReplyError

Result = TypeVar("Result")

PATIENCE_SECONDS = 10.0
"""How long a Redis may be away before a call gives up."""

SOCKET_SECONDS = 5.0
BUSY_SECONDS = 60.0
"""How long a writer tries again because others wrote meanwhile."""

REMEMBERED_SECONDS = 600
"""How long a transaction is known to be done, for a writer that lost the answer."""

AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


class StoreAwayError(TowerlineError, ConnectionError):
    """Redis did not answer for a while. It may come back: whoever can wait tries again."""


class RedisConnection:
    """One Redis. Nothing is opened before the first use."""

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def client(self) -> "redis.Redis":
        """One pool of connections for all threads."""
        return redis.Redis.from_url(
            self.address,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    @cached_property
    def _fast_mget(self) -> FastMget:
        pool = redis.ConnectionPool.from_url(
            self.address, protocol=2, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS
        )
        return FastMget(pool)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of some keys, in one round trip."""
        try:
            return self._fast_mget(keys)
        except UnusualReplyError:
            found: Any = self.patiently(lambda: self.client.mget(keys))
            return list(found)

    def close(self) -> None:
        """The next use opens other connections."""
        fast_mget: FastMget | None = self.__dict__.pop("_fast_mget", None)
        if fast_mget is not None:
            fast_mget.close()
        client: redis.Redis | None = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    def patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call that may be made twice.

        Raises StoreAwayError if Redis stays away, and TowerlineError if it refuses.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = 0.01
        while True:
            try:
                return call()
            except AWAY as error:
                if isinstance(error, redis.exceptions.AuthenticationError):
                    raise TowerlineError(self._refusal(error)) from error
                if time.monotonic() > deadline:
                    raise StoreAwayError(self._refusal(error)) from error
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(1.0, pause * 2)
            except redis.exceptions.ResponseError as error:
                raise TowerlineError(self._refusal(error)) from error

    def transaction(self, watched: Sequence[str], done_key: str, write: Callable[[Pipeline], int]) -> int:
        """Read, then write all or nothing, if nobody changed what is watched meanwhile; else once more.

        `write` reads from the pipeline, calls its `multi` and puts the writes; a result without `multi` writes nothing.
        What it returned is kept under `done_key` and a random number, so that a transaction whose answer was lost is
        not done twice.
        """
        done = f"{done_key}{uuid.uuid4().hex}"
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self.patiently(lambda: self._attempt(watched, done, write))
            except redis.exceptions.WatchError as error:
                if time.monotonic() > deadline:
                    raise TowerlineError(
                        f"other writers changed the online store at {self} for {BUSY_SECONDS:.0f} s without a pause; "
                        "nothing was written; let fewer write at a time, in larger batches"
                    ) from error
                time.sleep(random.uniform(0, 0.01))

    def _attempt(self, watched: Sequence[str], done: str, write: Callable[[Pipeline], int]) -> int:
        with self.client.pipeline(transaction=True) as pipe:
            pipe.watch(*watched)  # type: ignore[no-untyped-call]
            result: Any = pipe.get(done)
            if result is not None:
                return int(result)
            count = write(pipe)
            if pipe.explicit_transaction:
                pipe.set(done, count, ex=REMEMBERED_SECONDS)
                pipe.execute()
            return count

    def _refusal(self, error: Exception) -> str:
        said = str(error).rpartition("caused error: ")[2]
        return (
            f"the online store at {self} cannot be used ({said}); start that Redis, or set TOWERLINE_ONLINE_STORE to "
            "another, or to nothing for SQLite"
        )

    def __str__(self) -> str:
        """The address without its password."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
