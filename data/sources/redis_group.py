"""Following a Redis stream as a member of a consumer group.

An entry that was taken and not acknowledged stays pending in the group. What a member left is taken over by the others
when nobody has touched it for `IDLE_MS`: all at once the first time, then fewer and fewer (`FEWER`), at last one at a
time. Should one of them be what kills its consumers, only that one's count of deliveries goes on rising.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis

from data.sources.redis_client import ANSWER_SECONDS, connected, explaining, message_of
from data.sources.stream import ALONE_FROM, FEWER, Message

IDLE_MS = 15_000
"""A pending entry that nobody has touched for so long has lost its consumer."""
SEARCH_SECONDS = 1.0
"""Time between two searches for such entries."""

SEARCHED = 1_000
"""New entries that are counted where the server does not: before Redis 7, and after entries were deleted."""

T = TypeVar("T")
Entry = tuple[bytes, dict[bytes, bytes]]


class RedisSubscription:
    """A member of a consumer group."""

    def __init__(self, url: str, name: str, stream: str, group: str, member: str | None) -> None:
        """Raises StreamAwayError if the server cannot be reached."""
        self._name = name
        self._stream = stream
        self._group = group
        self._member = member or f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._client = connected(url)
        self._taken: set[str] = set()
        self._left_here = True
        """Whether there may be entries that were delivered to this member and that it does not know of."""
        self._lost_answer = False
        """Whether that is because an answer was lost, not because a member of this name died."""
        self._next_search = 0.0
        with explaining(name):
            self._make_group()

    def take(self, count: int, seconds: float) -> list[Message]:
        """What was left behind; if there is nothing, new entries."""
        try:
            with explaining(self._name):
                return self._in_group(lambda: self._take_left_behind(count) or self._take_new(count, seconds)) or []
        except BaseException:
            self._lost_answer = self._lost_answer or not self._left_here
            self._left_here = True
            raise

    def keep(self) -> None:
        """Touch what was taken."""
        if self._taken:
            with explaining(self._name):
                self._client.xclaim(self._stream, self._group, self._member, 0, list(self._taken), justid=True)

    def commit(self, messages: Sequence[Message]) -> None:
        """Acknowledge."""
        if messages:
            with explaining(self._name):
                self._client.xack(self._stream, self._group, *(message.entry for message in messages))
            self._taken.difference_update(message.entry for message in messages)

    def waiting(self) -> int | None:
        """Entries that the group has not yet delivered, and those that are pending."""
        with explaining(self._name):
            return self._in_group(self._count_waiting)

    def close(self) -> None:
        """Leave the group, unless something is pending: that is kept under this member's name."""
        try:
            with explaining(self._name):
                pending: Any = self._client.xpending_range(self._stream, self._group, "-", "+", 1, self._member)
                if not pending:
                    self._client.xgroup_delconsumer(self._stream, self._group, self._member)
        finally:
            self._client.close()

    def _take_new(self, count: int, seconds: float) -> list[Message]:
        milliseconds = max(1, int(min(seconds, ANSWER_SECONDS / 2) * 1_000))
        streams: Any = {self._stream: ">"}
        found: Any = self._client.xreadgroup(self._group, self._member, streams, count, milliseconds)
        entries: list[Entry] = found[0][1] if found else []
        return self._noted([message_of(self._stream, *entry) for entry in entries])

    def _take_left_behind(self, count: int) -> list[Message]:
        if self._taken:
            return []
        if self._left_here:
            mine, self._left_here = self._claim(count, member=self._member)
            self._lost_answer = self._lost_answer and self._left_here
            return mine
        if time.monotonic() < self._next_search:
            return []
        others, is_more = self._claim(count, member=None)
        self._next_search = 0.0 if is_more else time.monotonic() + SEARCH_SECONDS
        return others

    def _claim(self, count: int, member: str | None) -> tuple[list[Message], bool]:
        """Entries that are pending, of this member or of any that has lost its consumer, and whether there were any.

        Those that were delivered least often. What was deleted from the stream cannot be claimed.
        """
        idle = None if member else IDLE_MS
        found: Any = self._client.xpending_range(self._stream, self._group, "-", "+", count, member, idle=idle)
        if not found:
            return [], False
        before = min(entry["times_delivered"] for entry in found)
        deliveries = before if member and self._lost_answer else before + 1
        several = 1 if deliveries >= ALONE_FROM else FEWER.get(deliveries, count)
        entries = [entry["message_id"] for entry in found if entry["times_delivered"] == before][:several]
        return self._claim_all(entries, idle or 0, deliveries), True

    def _claim_all(self, entries: Any, idle: int, deliveries: int) -> list[Message]:
        claimed: Any = self._client.xclaim(
            self._stream, self._group, self._member, idle, entries, retrycount=deliveries
        )
        return self._noted([message_of(self._stream, name, fields, deliveries) for name, fields in claimed])

    def _noted(self, messages: list[Message]) -> list[Message]:
        self._taken.update(message.entry for message in messages)
        return messages

    def _in_group(self, action: Callable[[], T]) -> T | None:
        """What `action` gives; None if the group was gone, as after a restart of a server that keeps nothing, and was
        made anew."""
        try:
            return action()
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED", "no such key")):
                raise
            self._make_group()
            return None

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _count_waiting(self) -> int:
        groups: Any = self._client.xinfo_groups(self._stream)
        group = next(each for each in groups if each["name"] == self._group.encode())
        new = group.get("lag")
        if new is None:
            after: Any = f"({group['last-delivered-id'].decode()}"
            new = len(self._client.xrange(self._stream, after, "+", SEARCHED))  # type: ignore[arg-type]
        return int(group["pending"]) + int(new)
