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

RECEIVED_AT_ONCE = 1 << 16
_LINE_END = b"\r\n"


class UnusualReplyError(Exception):
    """To be asked for in the general way."""


class FastMget:
    """One connection per thread of a process."""

    def __init__(self, pool: "redis.ConnectionPool") -> None:
        """`pool` makes connections that speak RESP2."""
        self._pool = pool
        self._thread = threading.local()

    def __call__(self, keys: Sequence[str]) -> list[bytes | None]:
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
    """A connection of a process."""

    def __init__(self, pool: "redis.ConnectionPool") -> None:
        self.process = os.getpid()
        self.connection = cast("Any", pool.make_connection())
        self.connection.connect()
        self._socket = self.connection._sock

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of some keys. Raises ValueError if the reply is none."""
        self._socket.sendall(_command(keys))
        received, at = self._more(b""), 0
        values: list[bytes | None] = []
        for number in range(-1, len(keys)):
            end = received.find(_LINE_END, at)
            while end < 0:
                received, at = self._more(received[at:]), 0
                end = received.find(_LINE_END)
            size, at = int(received[at + 1 : end]), end + 2
            if number < 0:
                continue
            if size < 0:
                values.append(None)
                continue
            while len(received) < at + size + 2:
                received, at = self._more(received[at:]), 0
            end = at + size
            values.append(received[at:end])
            at = end + 2
        if at != len(received):
            raise ValueError(f"{len(received) - at} bytes after the reply")
        return values

    def _more(self, rest: bytes) -> bytes:
        """What is left of what was received, and what is received next."""
        received: bytes = self._socket.recv(RECEIVED_AT_ONCE)
        if not received:
            raise ConnectionError("Redis closed the connection")
        return rest + received


def _command(keys: Sequence[str]) -> bytes:
    """MGET as Redis reads it: every word after its length in bytes."""
    begin = f"*{len(keys) + 1}\r\n$4\r\nMGET\r\n"
    command = begin + "".join([f"${len(key)}\r\n{key}\r\n" for key in keys])
    if command.isascii():
        return command.encode()
    encoded = [key.encode() for key in keys]
    return begin.encode() + b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in encoded])
