"""Kafka on a real broker: what was sent is handled once, whoever dies in between."""

import signal
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import confluent_kafka
import confluent_kafka.admin
import pytest

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources.kafka import KafkaTopic
from data.sources.kafka_group import KafkaSubscription
from data.sources.stream import Message, StreamAwayError, open_stream
from tests.data.consumer import Store, consume, event, following, quarantined, start_consumer
from tests.data.servers import KafkaBroker
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster


class Topic:
    """A topic of its own, with three partitions."""

    def __init__(self, bootstrap: str, *, exists: bool = True) -> None:
        self.name = uuid.uuid4().hex
        self._bootstrap = bootstrap
        self.address = f"kafka://{bootstrap}/{self.name}?group={self.name}&session.timeout.ms=6000"
        self._producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "log_level": 0})
        if exists:
            self.make()

    def make(self) -> None:
        """Make the topic; it must not be there."""
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})
        for made in admin.create_topics([confluent_kafka.admin.NewTopic(self.name, 3, 1)]).values():
            made.result()

    def send(self, *messages: bytes) -> None:
        """Returns when the broker has them; the first goes to partition 0, the next to 1, and so on."""
        for number, message in enumerate(messages):
            self._producer.produce(self.name, message, partition=number % 3)
        assert self._producer.flush(30) == 0

    def send_events(self, numbers: range) -> None:
        """One event for each number."""
        self.send(*map(event, numbers))

    @property
    def source(self) -> KafkaTopic:
        """The topic as a source."""
        opened = open_stream(self.address, EventRules(datetime.now(UTC)))
        assert isinstance(opened, KafkaTopic)
        return opened


@pytest.fixture
def topic(kafka_bootstrap: str) -> Topic:
    return Topic(kafka_bootstrap)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_a_topic_is_read_up_to_now_and_again(topic: Topic) -> None:
    topic.send_events(range(300))
    topic.send(b"nonsense")
    topic.send_events(range(300, 302))
    parts = topic.source.parts()
    topic.send_events(range(50))
    for _ in range(2):
        chunks = [list(part.chunks()) for part in parts]
        items = [[item for chunk in part for item in chunk.rows["item_id"]] for part in chunks]
        assert [len(part) for part in items] == [101, 101, 100]
        assert sorted((item for part in items for item in part), key=int) == numbers(302)
        assert items[1] == [str(number) for number in [*range(1, 300, 3), 301]]
        assert [line for chunk in chunks[0] for line in chunk.lines] == [*range(1, 101), 102]
        assert [row.line for part in chunks for chunk in part for row in chunk.broken] == [101]
    assert [part.name for part in parts] == [f"{topic.source.name}/{number}" for number in range(3)]


def test_a_topic_that_grows_batch_by_batch_is_read_whole(topic: Topic) -> None:
    for start in range(0, 90, 9):
        topic.send_events(range(start, start + 9))
    assert sorted(part.end - part.begin for part in topic.source.parts()) == [30, 30, 30]


def test_an_empty_topic_is_said(topic: Topic, tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match="is empty: it has no messages"):
        topic.source.parts()
    assert consume(topic.address, tmp_path).messages == 0


def test_a_topic_that_is_not_there_is_said(kafka_bootstrap: str, tmp_path: Path) -> None:
    address = f"kafka://{kafka_bootstrap}/nowhere"
    with pytest.raises(TowerlineError, match="there is no such topic"):
        open_stream(address, EventRules(datetime.now(UTC))).parts()
    assert consume(address, tmp_path).messages == 0


def test_a_topic_that_is_made_later_is_found(
    kafka_bootstrap: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic(kafka_bootstrap, exists=False)
    with following(topic.address, tmp_path) as running:
        wait_until(lambda: "there is no such topic yet" in caplog.text)
        time.sleep(1)
        topic.make()
        topic.send_events(range(9))
        wait_until(lambda: running.progress.handled == 9)
    assert caplog.text.count("there is no such topic yet") == 1


def test_a_member_that_says_it_lives_loses_nothing(topic: Topic) -> None:
    topic.send_events(range(300))
    member = topic.source.subscribe()
    taken = _take_all(member, 7)
    for _ in range(5):
        member.keep()
        time.sleep(0.1)
    member.commit(taken)
    taken += _take_all(member, 293)
    assert len({message.position for message in taken}) == 300
    wait_until(lambda: member.take(10, 0.1) == [] and member.waiting() == 0)
    member.close()


def _take_all(member: KafkaSubscription, count: int) -> list[Message]:
    """So many messages."""
    taken: list[Message] = []
    deadline = time.monotonic() + 120
    while len(taken) < count:
        assert time.monotonic() < deadline
        taken += member.take(count - len(taken), 0.2)
    return taken


def test_a_broker_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.kafka_client.ANSWER_SECONDS", 2)
    with pytest.raises(StreamAwayError, match=r"does not answer .*; start the broker, or correct the address"):
        consume("kafka://127.0.0.1:1/shop", tmp_path)


def test_a_backlog_is_handled_once(topic: Topic, tmp_path: Path) -> None:
    topic.send_events(range(20_000))
    progress = consume(topic.address, tmp_path)
    assert Store(tmp_path).items() == numbers(20_000)
    assert (progress.handled, progress.duplicates) == (20_000, 0)
    assert consume(topic.address, tmp_path).messages == 0


def test_an_event_is_handled_within_a_second(topic: Topic, tmp_path: Path) -> None:
    topic.send_events(range(3))
    with following(topic.address, tmp_path) as running:
        wait_until(lambda: running.progress.handled == 3)
        running.progress._delays_ms.clear()
        for number in range(3, 20):
            topic.send_events(range(number, number + 1))
            time.sleep(0.05)
        wait_until(lambda: running.progress.handled == 20)
    assert running.progress.delay_ms(50) < 1_000


def test_members_share_the_topic(topic: Topic, tmp_path: Path) -> None:
    with following(topic.address, tmp_path) as one, following(topic.address, tmp_path) as two:
        sent = 0
        while min(one.progress.handled, two.progress.handled) < 30:
            assert sent < 100_000
            topic.send_events(range(sent, sent + 30))
            sent += 30
            time.sleep(0.1)
        wait_until(lambda: len(Store(tmp_path).items()) == sent)
    assert Store(tmp_path).items() == numbers(sent)


def test_killed_between_store_and_commit_nothing_is_lost_or_double(topic: Topic, tmp_path: Path) -> None:
    topic.send_events(range(3_000))
    killed = start_consumer(topic.address, tmp_path, "--die-after", "2999")
    assert killed.wait(300) == -signal.SIGKILL
    before = len(Store(tmp_path).items())
    progress = consume(topic.address, tmp_path)
    assert Store(tmp_path).items() == numbers(3_000)
    assert progress.duplicates > 0
    assert progress.handled - progress.duplicates == 3_000 - before
    assert quarantined(tmp_path) == []


def test_poison_goes_to_quarantine_and_the_stream_goes_on(topic: Topic, tmp_path: Path) -> None:
    topic.send_events(range(10))
    topic.send(event(0, item_id="poison"), b"\xff\x00", b"", event(0, event_time="yesterday"))
    topic.send_events(range(10, 20))
    progress = consume(topic.address, tmp_path)
    assert Store(tmp_path).items() == numbers(20)
    rules = sorted(str(record["rule"]) for record in quarantined(tmp_path))
    assert rules[0] == "event_time is not a time in the years 1 to 9999"
    assert rules[1] == "it makes the handler fail: OverflowError: too much"
    assert rules[2].startswith("not JSON")
    assert rules[3] == "not UTF-8"
    assert progress.quarantined == 4
    assert consume(topic.address, tmp_path).messages == 0


def test_a_frozen_broker_is_waited_for(tmp_path: Path) -> None:
    with KafkaBroker() as broker:
        topic = Topic(broker.bootstrap)
        topic.send_events(range(300))
        with following(topic.address, tmp_path) as running:
            wait_until(lambda: running.progress.handled == 300)
            broker.signal(signal.SIGSTOP)
            time.sleep(8)
            broker.signal(signal.SIGCONT)
            topic.send_events(range(300, 600))
            wait_until(lambda: len(Store(tmp_path).items()) == 600)
    assert Store(tmp_path).items() == numbers(600)
    assert quarantined(tmp_path) == []


def test_a_broker_that_dies_and_comes_back_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with KafkaBroker() as broker:
        topic = Topic(broker.bootstrap)
        topic.send_events(range(30))
        with following(topic.address, tmp_path) as running:
            wait_until(lambda: running.progress.handled == 30)
            broker.kill()
            wait_until(lambda: "is away" in caplog.text)
            time.sleep(3)
            broker.start()
            topic.make()
            topic.send_events(range(30, 50))
            wait_until(lambda: running.progress.handled == 50)
    assert caplog.text.count("is away") == 1
    assert Store(tmp_path).items() == numbers(50)
