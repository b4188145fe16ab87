"""What reading and following a Kafka topic have in common: the options of the client, and what its errors mean."""

from datetime import UTC, datetime

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException
from confluent_kafka import Message as Delivered

from cluster.errors import TowerlineError
from data.moments import LATEST_US
from data.sources.stream import Message, StreamAwayError

ANSWER_SECONDS = 10.0
"""A broker that has not answered for so long is away."""

OPTIONS: dict[str, str | int | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 2_000,
    "socket.timeout.ms": int(ANSWER_SECONDS * 1_000),
    "reconnect.backoff.max.ms": 1_000,
    "topic.metadata.refresh.interval.ms": 5_000,
    "log_level": 0,
}

AWAY = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_COORDINATOR,
    KafkaError.REQUEST_TIMED_OUT,
}
MOVED = {
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._NO_OFFSET,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
}
"""The group has been shared out anew meanwhile: whoever has the partition now gets its messages again."""
NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


def message_of(delivered: Delivered) -> Message:
    """A message without an error, as the broker delivered it."""
    kind, sent = delivered.timestamp()
    known = kind != TIMESTAMP_NOT_AVAILABLE and 0 < sent <= LATEST_US // 1_000
    return Message(
        stream=delivered.topic() or "",
        partition=delivered.partition() or 0,
        entry=str(delivered.offset()),
        raw=bytes(delivered.value() or b""),
        time=datetime.fromtimestamp(sent / 1_000, UTC) if known else None,
    )


def explained(error: KafkaException, name: str) -> TowerlineError:
    """StreamAwayError if waiting may help."""
    fault: KafkaError = error.args[0]
    if fault.code() in AWAY or fault.retriable():
        return StreamAwayError(f"{name} does not answer ({fault.str()}); start the broker, or correct the address")
    return TowerlineError(f"{name}: {fault.str()}")


def partitions_of(consumer: Consumer, topic: str, name: str, timeout: float | None = None) -> list[int]:
    """The numbers of a topic's partitions; none if there is no such topic. Raises StreamAwayError."""
    try:
        found = consumer.list_topics(topic, timeout=timeout or ANSWER_SECONDS).topics[topic]
    except KafkaException as error:
        raise explained(error, name) from error
    if found.error is not None and found.error.code() not in NO_TOPIC:
        raise explained(KafkaException(found.error), name)
    return sorted(found.partitions)
