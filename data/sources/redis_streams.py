"""Redis Streams: a stream read up to now as one part; `redis_group` follows it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self
from urllib.parse import urlunsplit

import redis

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources.chunk import Chunk
from data.sources.messages import columns_of, rows_of
from data.sources.redis_client import connected, explaining, message_of
from data.sources.redis_group import RedisSubscription
from data.sources.stream import EXAMPLES, GROUP, StreamAddress

MESSAGES_PER_CHUNK = 20_000


@dataclass(frozen=True)
class RedisStream:
    """A stream whose entries are events: the JSON in their field `event`, or else their fields themselves."""

    url: str = field(repr=False)
    """Server and database, with the password if there is one."""
    name: str
    """Its address without the password."""
    stream: str
    rules: EventRules
    group: str = GROUP
    member: str | None = None
    """Name within the group; one that is the same after a restart goes on at once with what it had taken."""
    has_types: ClassVar[bool] = False

    @classmethod
    def at(cls, address: StreamAddress, rules: EventRules) -> Self:
        """The stream at `redis://host:port/db?stream=…&group=…&member=…`."""
        address.refuse_unknown(["stream", "group", "member"])
        stream = address.query.get("stream")
        if not address.parts.netloc or stream is None:
            raise TowerlineError(f"{address.without_password} names no server or no stream; expected e.g. {EXAMPLES}")
        url = urlunsplit(address.parts._replace(query="", fragment=""))
        group, member = address.query.get("group", GROUP), address.query.get("member")
        return cls(url, f"{address.without_password}?stream={stream}", stream, rules, group, member)

    def columns(self) -> list[str]:
        """The fields of a message that the contract has a column for."""
        return list(dict.fromkeys(columns_of(self.rules).values()))

    def parts(self) -> "list[RedisPart]":
        """All entries up to the newest of now. Raises TowerlineError if there is none, StreamAwayError if no server
        answers."""
        with explaining(self.name), connected(self.url) as client:
            newest: Any = client.xrevrange(self.stream, count=1)
        if not newest:
            raise TowerlineError(f"{self.name} is empty: it has no messages; send some, or pass another stream")
        return [RedisPart(self, newest[0][0].decode())]

    def subscribe(self) -> RedisSubscription:
        """Join the group; it is made if there is none, and then begins with the oldest entry."""
        return RedisSubscription(self.url, self.name, self.stream, self.group, self.member)


@dataclass(frozen=True)
class RedisPart:
    """All entries of a stream up to one."""

    source: RedisStream
    newest: str
    """Id of the last entry."""

    @property
    def name(self) -> str:
        """That of the stream."""
        return self.source.name

    def chunks(self) -> Iterator[Chunk]:
        """The entries in order, numbered from 1. Raises StreamAwayError if the server stops to answer."""
        line, start = 1, "-"
        with explaining(self.name), connected(self.source.url) as client:
            while entries := _range(client, self.source.stream, start, self.newest):
                messages = [message_of(self.source.stream, *entry) for entry in entries]
                yield rows_of(messages, range(line, line + len(messages)), self.source.rules)
                line += len(messages)
                start = f"({messages[-1].entry}"


def _range(client: "redis.Redis", stream: str, start: str, newest: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    entries: Any = client.xrange(stream, start, newest, MESSAGES_PER_CHUNK)
    return list(entries)
