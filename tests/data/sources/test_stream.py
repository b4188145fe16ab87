"""Addresses of streams."""

from datetime import UTC, datetime

import pytest

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.sources.kafka import KafkaTopic
from data.sources.redis_streams import RedisStream
from data.sources.stream import is_stream, open_stream

RULES = EventRules(datetime(2024, 5, 1, tzinfo=UTC))


def test_a_topic() -> None:
    source = open_stream("kafka://a:9092,b:9092/shop?group=g&security.protocol=SSL", RULES)
    assert source == KafkaTopic("a:9092,b:9092", "shop", RULES, "g", {"security.protocol": "SSL"})
    assert source.name == "kafka://a:9092,b:9092/shop"
    assert source.client_options()["security.protocol"] == "SSL"


def test_a_redis_stream() -> None:
    source = open_stream("redis://me:secret@host:1/2?stream=events&member=one", RULES)
    assert source == RedisStream(
        "redis://me:secret@host:1/2", "redis://host:1/2?stream=events", "events", RULES, "towerline", "one"
    )
    assert "secret" not in repr(source)


def test_columns_are_those_of_the_contract_under_their_names_in_a_message() -> None:
    rules = EventRules(RULES.now, {"user_id": "uid", "event_time": "ts", "ingest_time": "ts"})
    columns = ["uid", "item_id", "ts", "event_id", "event_type", "value", "decision_id"]
    assert open_stream("kafka://a/shop", rules).columns() == columns


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("kafka://a:9092", "kafka://a:9092 names no broker or no topic"),
        ("kafka:///shop", "names no broker or no topic"),
        ("kafka://a/shop/1", "names no broker or no topic"),
        ("kafka://a/shop?gruop=g", "unknown parameter 'gruop'; there are group"),
        ("kafka://a/shop?group=", "is given twice or has no value"),
        ("redis://a/0", "names no server or no stream; expected e.g. "),
        ("redis://a/0?stream=s&topic=t", "unknown parameter 'topic'; there are stream, group, member"),
        ("redis://:secret@a/0?stream=s&stream=t", "is given twice or has no value"),
        ("kafka://[a/shop", "the address of a stream is wrong"),
        ("pulsar://a/shop", "pulsar://a/shop is no stream; expected e.g. kafka://"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(address: str, message: str) -> None:
    with pytest.raises(TowerlineError) as caught:
        open_stream(address, RULES)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("kafka://a/b", True), ("rediss://a/0?stream=s", True), ("s3://a/b.parquet", False), ("events.csv", False)],
)
def test_what_is_a_stream(address: str, expected: bool) -> None:
    assert is_stream(address) is expected
