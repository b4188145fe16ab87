"""Kafka: a topic read up to now, a part per partition; `kafka_group` follows it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as Delivered
from confluent_kafka import TopicPartition as Partition

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources.chunk import Chunk
from data.sources.kafka_client import ANSWER_SECONDS, OPTIONS, explained, message_of, partitions_of
from data.sources.kafka_group import KafkaSubscription
from data.sources.messages import columns_of, rows_of
from data.sources.stream import EXAMPLES, GROUP, StreamAddress, StreamAwayError

MESSAGES_PER_CHUNK = 20_000


@dataclass(frozen=True)
class KafkaTopic:
    """A topic whose messages are events."""

    bootstrap: str
    """host:port of one broker or several, with commas."""
    topic: str
    rules: EventRules
    group: str = GROUP
    options: dict[str, str] = field(default_factory=dict)
    """Further options of librdkafka, e.g. `security.protocol`."""
    has_types: ClassVar[bool] = False

    @classmethod
    def at(cls, address: StreamAddress, rules: EventRules) -> Self:
        """The topic at `kafka://host:port/topic?group=…`; parameters with a dot are options of librdkafka."""
        topic = address.parts.path.strip("/")
        if not address.parts.netloc or not topic or "/" in topic:
            raise TowerlineError(f"{address.without_password} names no broker or no topic; expected e.g. {EXAMPLES}")
        options = {name: value for name, value in address.query.items() if "." in name}
        address.refuse_unknown(["group", *options])
        return cls(address.parts.netloc, topic, rules, address.query.get("group", GROUP), options)

    @property
    def name(self) -> str:
        """Its address."""
        return f"kafka://{self.bootstrap}/{self.topic}"

    def columns(self) -> list[str]:
        """The fields of a message that the contract has a column for."""
        return list(dict.fromkeys(columns_of(self.rules).values()))

    def parts(self) -> "list[KafkaPart]":
        """The partitions that hold messages, as far as they go now.

        Raises TowerlineError if there is no message, StreamAwayError if no broker answers.
        """
        consumer = Consumer(self.client_options())
        try:
            numbers = partitions_of(consumer, self.topic, self.name)
            if not numbers:
                raise TowerlineError(f"{self.name}: there is no such topic; create it, or correct the name")
            bounds = [(number, *self._bounds(consumer, number)) for number in numbers]
        except KafkaException as error:
            raise explained(error, self.name) from error
        finally:
            consumer.close()
        parts = [KafkaPart(self, number, begin, end) for number, begin, end in bounds if end > begin]
        if not parts:
            raise TowerlineError(f"{self.name} is empty: it has no messages; send some, or pass another topic")
        return parts

    def subscribe(self) -> KafkaSubscription:
        """Join the group. Raises StreamAwayError if no broker answers."""
        return KafkaSubscription(self.client_options(), self.topic, self.name)

    def client_options(self) -> dict[str, str | int | bool]:
        """For `confluent_kafka.Consumer`."""
        return {**OPTIONS, "bootstrap.servers": self.bootstrap, "group.id": self.group, **self.options}

    def _bounds(self, consumer: Consumer, partition: int) -> tuple[int, int]:
        """First offset and the one after the last.

        Some brokers name the beginning of the last batch when they are asked for the end, so that is read to its end.
        """
        place = Partition(self.topic, partition)
        begin, end = consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
        if end <= begin:
            return begin, begin
        consumer.assign([Partition(self.topic, partition, end)])
        read = _Read([], end, at_end=False)
        while not read.at_end:
            read = _read_on(consumer, self.name, read.reached)
        return begin, read.reached


@dataclass(frozen=True)
class KafkaPart:
    """The messages of a partition from one offset to before another."""

    source: KafkaTopic
    partition: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Topic and partition."""
        return f"{self.source.name}/{self.partition}"

    def chunks(self) -> Iterator[Chunk]:
        """The messages in order; line n + 1 is offset n. Raises StreamAwayError if the broker stops to answer."""
        consumer = Consumer(self.source.client_options())
        try:
            consumer.assign([Partition(self.source.topic, self.partition, self.begin)])
            read = _Read([], self.begin, at_end=False)
            while read.reached < self.end and not read.at_end:
                read = _read_on(consumer, self.name, read.reached)
                messages = [message_of(each) for each in read.delivered]
                lines = [int(message.entry) + 1 for message in messages if int(message.entry) < self.end]
                if lines:
                    yield rows_of(messages[: len(lines)], lines, self.source.rules)
        except KafkaException as error:
            raise explained(error, self.name) from error
        finally:
            consumer.close()


class _Read(NamedTuple):
    delivered: list[Delivered]
    reached: int
    """The offset after them."""
    at_end: bool
    """Whether there are no more for now."""


def _read_on(consumer: Consumer, name: str, begin: int) -> _Read:
    """The next messages of the one partition that is assigned."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        delivered: list[Delivered] = []
        for each in consumer.consume(MESSAGES_PER_CHUNK, 0.2):
            error = each.error()
            if error is None:
                delivered.append(each)
            elif error.code() == KafkaError._PARTITION_EOF:
                return _Read(delivered, max(each.offset() or 0, begin), at_end=True)
            else:
                raise KafkaException(error)
        if delivered:
            return _Read(delivered, (delivered[-1].offset() or 0) + 1, at_end=False)
    raise StreamAwayError(f"{name} has not answered for {ANSWER_SECONDS:.0f} s; see to the broker, then run again")
