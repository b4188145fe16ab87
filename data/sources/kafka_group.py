"""Following a Kafka topic as a member of a consumer group."""

import logging
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import Message as Delivered
from confluent_kafka import TopicPartition as Partition

from data.sources.kafka_client import AWAY, MOVED, NO_TOPIC, explained, message_of, partitions_of
from data.sources.stream import Message, StreamAwayError

logger = logging.getLogger(__name__)


class KafkaSubscription:
    """A member of a consumer group. The broker notes an offset per partition, and does not count deliveries."""

    def __init__(self, options: Mapping[str, str | int | bool], topic: str, name: str) -> None:
        """Raises StreamAwayError if no broker answers."""
        self._topic = topic
        self._name = name
        self._is_down = False
        self._read_to_end: dict[int, bool] | None = None
        """For each partition that this member has been given; None before it has been given any."""
        self._failure: KafkaException | None = None
        """What came together with messages that had to be given first."""
        self._consumer = Consumer({**options, "error_cb": self._on_error, "on_commit": self._on_commit})
        try:
            partitions_of(self._consumer, topic, name)
            self._consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        except BaseException:
            self._consumer.close()
            raise

    def take(self, count: int, seconds: float) -> list[Message]:
        """Messages of the partitions that this member has been given.

        They are given, whatever else came: the consumer stands behind them already.
        """
        self._raise_failure()
        if self._is_down:
            partitions_of(self._consumer, self._topic, self._name, timeout=max(seconds, 1.0))
            self._is_down = False
        messages: list[Message] = []
        try:
            delivered = self._consumer.consume(1, seconds)
            messages += self._without_signals(delivered)
            if delivered and count > 1:
                messages += self._without_signals(self._consumer.consume(count - 1, 0))
        except KafkaException as error:
            self._failure = error
        if messages:
            return messages
        self._raise_failure()
        if self._is_down:
            raise StreamAwayError(f"{self._name} does not answer")
        return []

    def keep(self) -> None:
        """Poll with all partitions on hold: a member that does not poll for minutes is taken for dead."""
        try:
            held = self._consumer.assignment()
            self._consumer.pause(held)
            delivered = self._consumer.poll(0)
            mine = self._consumer.assignment()
            self._consumer.resume([place for place in mine if place in held])
            for message in self._without_signals([delivered] if delivered else []):
                self._consumer.seek(Partition(self._topic, message.partition or 0, int(message.entry)))
        except KafkaException as error:
            raise explained(error, self._name) from error

    def commit(self, messages: Sequence[Message]) -> None:
        """Move the group's offsets past these messages, in the partitions that are still this member's.

        The broker's answer is not waited for: one that dies meanwhile may never give it. Without the commit, messages
        are delivered again, unless a later commit is past them. `close` sees to those that are still under way.
        """
        try:
            owned = {place.partition for place in self._consumer.assignment()}
            reached: dict[int, int] = {}
            for message in messages:
                partition = message.partition or 0
                reached[partition] = max(reached.get(partition, 0), int(message.entry) + 1)
            offsets = [Partition(self._topic, number, reached[number]) for number in reached if number in owned]
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            if error.args[0].code() not in MOVED:
                raise explained(error, self._name) from error

    def waiting(self) -> int | None:
        """From where this member is to the end of its partitions, as the broker last told."""
        if self._read_to_end is None or not all(self._read_to_end.values()):
            return None
        waiting = 0
        for place in self._consumer.position(self._consumer.assignment()):
            _, end = self._consumer.get_watermark_offsets(place, cached=True)
            waiting += max(end - place.offset, 0) if place.offset >= 0 else 0
        return waiting

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _without_signals(self, delivered: Sequence[Delivered]) -> list[Message]:
        """The messages proper; the others tell of an end, a missing topic or a broker that is away."""
        messages = []
        for each in delivered:
            error = each.error()
            if error is None:
                messages.append(message_of(each))
            elif error.code() == KafkaError._PARTITION_EOF and self._read_to_end is not None:
                self._read_to_end[each.partition() or 0] = True
            elif error.code() in NO_TOPIC:
                if self._read_to_end is None:
                    logger.warning("%s: there is no such topic yet", self._name)
                self._read_to_end = {}
            elif error.code() in AWAY:
                self._is_down = True
            elif error.code() not in {KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED}:
                self._failure = KafkaException(error)
        return messages

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise explained(failure, self._name) from failure

    def _on_error(self, error: KafkaError) -> None:
        self._is_down = self._is_down or error.code() in AWAY

    def _on_commit(self, error: KafkaError | None, partitions: list[Partition]) -> None:
        failed = [each for each in (error, *(place.error for place in partitions)) if each is not None]
        self._is_down = self._is_down or any(each.code() in AWAY for each in failed)
        refused = [each for each in failed if each.code() not in AWAY | MOVED]
        if refused:
            self._failure = KafkaException(refused[0])

    def _on_assign(self, consumer: Consumer, partitions: list[Partition]) -> None:
        self._read_to_end = dict.fromkeys((place.partition for place in partitions), False)

    def _on_revoke(self, consumer: Consumer, partitions: list[Partition]) -> None:
        self._read_to_end = None
