"""MGET, spoken directly: the one call that every request waits for.

The general client makes and takes apart commands of any kind, which for a hundred values takes it longer than Redis
takes to answer. The connection (address, password, TLS, database) is still the client's. Whatever is unusual, an error
or a connection that broke, is left to the general client.
"""

import os
import threading
from collections.abc import Sequence
from typing import Any, cast

import redis

FIRST_BUFFER = 1 << 16
_LINE_END = b"\r\n"


class UnusualReplyError(Exception):
    """To be asked for in the general way."""


class FastMget:
    """One connection per thread of a process."""

    def __init__(self, pool: "redis.ConnectionPool") -> None:
        """`pool` makes connections that speak RESP2."""
        self._pool = pool
        self._thread = threading.local()

    def __call__(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of some keys. Raises UnusualReplyError if they are to be asked for in another way."""
        conversation: _Conversation | None = getattr(self._thread, "conversation", None)
        try:
            if conversation is None or conversation.process != os.getpid():
                conversation = self._thread.conversation = _Conversation(self._pool)
            return conversation.mget(keys)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | redis.RedisError | ValueError):
                raise UnusualReplyError from error
            raise

    def close(self) -> None:
        """Close this thread's connection."""
        conversation: _Conversation | None = self._thread.__dict__.pop("conversation", None)
        if conversation is not None and conversation.process == os.getpid():
            conversation.connection.disconnect()


class _Conversation:
    """A connection and what was received over it."""

    def __init__(self, pool: "redis.ConnectionPool") -> None:
        self.process = os.getpid()
        self.connection = cast("Any", pool.make_connection())
        self.connection.connect()
        self._socket = self.connection._sock
        self._received = bytearray(FIRST_BUFFER)
        self._filled = 0

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of some keys. Raises ValueError if the reply is none."""
        command = [b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1), *[b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]]
        self._socket.sendall(b"".join(command))
        self._filled = 0
        received, at = self._received, 0
        values: list[bytes | None] = []
        for number in range(-1, len(keys)):
            end = received.find(_LINE_END, at, self._filled)
            while end < 0:
                received = self._receive()
                end = received.find(_LINE_END, at, self._filled)
            size, at = int(received[at + 1 : end]), end + 2
            if number < 0:
                continue
            if size < 0:
                values.append(None)
                continue
            while self._filled < at + size + 2:
                received = self._receive()
            values.append(bytes(received[at : at + size]))
            at += size + 2
        if at != self._filled:
            raise ValueError(f"{self._filled - at} bytes after the reply")
        return values

    def _receive(self) -> bytearray:
        """Receive more, into a buffer that grows."""
        if self._filled == len(self._received):
            self._received += bytes(len(self._received))
        with memoryview(self._received) as view:
            count = self._socket.recv_into(view[self._filled :])
        if count == 0:
            raise ConnectionError("Redis closed the connection")
        self._filled += count
        return self._received
