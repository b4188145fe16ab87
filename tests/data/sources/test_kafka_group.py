"""What a member of a consumer group makes of what its consumer gives, with no broker."""

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as Delivered

from cluster.errors import TowerlineError
from data.sources import kafka_group
from data.sources.kafka_group import KafkaSubscription
from data.sources.stream import StreamAwayError


def event(offset: int) -> Delivered:
    return Delivered(topic="shop", partition=0, offset=offset, value=b"{}", error=None)


def signal(code: int) -> Delivered:
    return Delivered(topic="shop", partition=0, offset=0, value=b"", error=KafkaError(code, "it says so"))


class FakeConsumer:
    """Gives one batch for each call of consume; raises those that are errors."""

    def __init__(self, *batches: list[Delivered] | Exception) -> None:
        self._batches = list(batches)

    def subscribe(self, topics: list[str], **_: object) -> None:
        assert topics == ["shop"]

    def consume(self, count: int, seconds: float) -> list[Delivered]:
        batch = self._batches.pop(0) if self._batches else []
        if isinstance(batch, Exception):
            raise batch
        assert len(batch) <= count
        return batch


Join = Callable[..., KafkaSubscription]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Join:
    """A member whose consumer gives these batches."""

    def join(*batches: list[Delivered] | Exception) -> KafkaSubscription:
        monkeypatch.setattr(kafka_group, "Consumer", lambda _: FakeConsumer(*batches))
        monkeypatch.setattr(kafka_group, "partitions_of", lambda *_, **__: [0])
        return KafkaSubscription({}, "shop", "kafka://broker/shop")

    return join


def taken(member: KafkaSubscription) -> list[str]:
    return [message.entry for message in member.take(10, 0)]


@pytest.mark.parametrize(
    ("code", "raised"),
    [(KafkaError.TOPIC_AUTHORIZATION_FAILED, TowerlineError), (KafkaError._MAX_POLL_EXCEEDED, None)],
)
def test_messages_before_and_after_an_error_are_given_and_it_is_raised_next(
    join: Join, code: int, raised: type[Exception] | None
) -> None:
    member = join([event(0)], [event(1), signal(code), event(2)], [event(3)])
    assert taken(member) == ["0", "1", "2"]
    if raised:
        with pytest.raises(raised, match="kafka://broker/shop: it says so"):
            member.take(10, 0)
    assert taken(member) == ["3"]


def test_a_second_call_that_fails_does_not_lose_what_the_first_gave(join: Join) -> None:
    member = join([event(0)], KafkaException(KafkaError(KafkaError._TRANSPORT, "it says so")), [event(1)])
    assert taken(member) == ["0"]
    with pytest.raises(StreamAwayError, match="does not answer"):
        member.take(10, 0)
    assert taken(member) == ["1"]


def test_an_error_alone_is_raised_at_once(join: Join) -> None:
    member = join([signal(KafkaError.GROUP_AUTHORIZATION_FAILED)], [], [event(0)])
    with pytest.raises(TowerlineError, match="it says so"):
        member.take(10, 0)
    assert taken(member) == ["0"]
