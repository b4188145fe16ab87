"""Streams of events: messages that arrive one after another, read up to now as any source, or followed for good.

Whoever follows belongs to a *group*: its members share the messages, and the broker remembers how far the group is.
A message is delivered again until it was committed, so what is done with it must bear a repetition.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources.source import Source

GROUP = "towerline"
EXAMPLES = "kafka://127.0.0.1:9092/TOPIC?group=towerline or redis://127.0.0.1:6379/0?stream=NAME&group=towerline"


FEWER = {3: 100, 4: 5}
"""Deliveries → how many such messages are delivered together. One of them may be what their consumers died of."""
SUSPECT_FROM = min(FEWER)
ALONE_FROM = max(FEWER) + 1
"""From this delivery on a message is delivered alone."""


class StreamAwayError(TowerlineError):
    """The broker does not answer, or not in time. It may come back: whoever can wait should."""


@dataclass(frozen=True)
class Message:
    """What a stream delivers."""

    stream: str
    """Topic, or name of the Redis stream."""
    partition: int | None
    """Of the topic; a Redis stream has none."""
    entry: str
    """Offset, or entry id."""
    raw: bytes
    """The JSON object of one event, if all is well."""
    time: datetime | None
    """When the broker or the producer says that it was sent; None if it does not."""
    deliveries: int = 1
    """How often the broker has delivered it, this time included, as far as the broker counts."""

    @property
    def tries_before(self) -> int:
        """How often a consumer has taken it alone and not come to commit it."""
        return max(0, self.deliveries - ALONE_FROM)

    @property
    def position(self) -> str:
        """Where it stands."""
        return "/".join(str(part) for part in (self.stream, self.partition, self.entry) if part is not None)

    @property
    def key(self) -> str:
        """The same whenever it is delivered, and another for what may stand there after the stream was made anew."""
        sent = b"" if self.time is None else str(self.time.timestamp()).encode()
        return hashlib.blake2b(b"\n".join([self.position.encode(), sent, self.raw]), digest_size=16).hexdigest()


class Subscription(Protocol):
    """One member of a group. Every method may raise StreamAwayError; used by one thread."""

    def take(self, count: int, seconds: float) -> list[Message]:
        """Up to `count` messages, after at most about `seconds`. They are this member's until they are committed.

        What somebody left behind comes only while this member holds nothing.
        """
        ...

    def keep(self) -> None:
        """Say that this member lives and still works on what it took; to be called every few seconds meanwhile."""
        ...

    def commit(self, messages: Sequence[Message]) -> None:
        """These, all of those taken since the last commit, are done with and not to be delivered again."""
        ...

    def waiting(self) -> int | None:
        """Messages for this member that it has not yet taken; None while that is not known."""
        ...

    def close(self) -> None:
        """Leave the group; what was not committed goes to another member."""
        ...


class StreamSource(Source, Protocol):
    """A stream. As a source it is what is in it now, and raises TowerlineError if that is nothing."""

    @property
    def rules(self) -> EventRules:
        """How its messages are events."""
        ...

    def subscribe(self) -> Subscription:
        """Join the group. Raises StreamAwayError if the broker cannot be reached."""
        ...


@dataclass(frozen=True)
class StreamAddress:
    """An address, taken apart."""

    parts: SplitResult
    query: Mapping[str, str]

    @classmethod
    def of(cls, address: str) -> Self:
        """Raises TowerlineError for a parameter that is given twice or has no value."""
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise TowerlineError(f"the address of a stream is wrong ({error}); expected e.g. {EXAMPLES}") from error
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        parsed = cls(parts, dict(pairs))
        if len(parsed.query) < len(pairs) or not all(parsed.query.values()):
            raise TowerlineError(
                f"{parsed.without_password}: a parameter is given twice or has no value; expected e.g. {EXAMPLES}"
            )
        return parsed

    def refuse_unknown(self, known: Sequence[str]) -> None:
        """Raise TowerlineError for a parameter that is not `known`."""
        for name in self.query:
            if name not in known:
                raise TowerlineError(
                    f"{self.without_password}: unknown parameter {name!r}; there are {', '.join(known)}"
                )

    @property
    def without_password(self) -> str:
        """The address for messages."""
        server = self.parts.netloc.rpartition("@")[2]
        return f"{self.parts.scheme}://{server}{self.parts.path}"


def is_stream(address: str) -> bool:
    """Whether this is the address of a stream, not of a file or a database."""
    return address.startswith(("kafka://", "redis://", "rediss://"))


def open_stream(address: str, rules: EventRules) -> StreamSource:
    """The stream at an address; nothing is connected yet. `rules` say how its messages are events.

    Raises TowerlineError for an address that names no stream.
    """
    parsed = StreamAddress.of(address)
    match parsed.parts.scheme:
        case "kafka":
            from data.sources.kafka import KafkaTopic

            return KafkaTopic.at(parsed, rules)
        case "redis" | "rediss":
            from data.sources.redis_streams import RedisStream

            return RedisStream.at(parsed, rules)
    raise TowerlineError(f"{parsed.without_password} is no stream; expected e.g. {EXAMPLES}")
