"""One JSON object per event; a bad message costs itself alone."""

import json
from datetime import UTC, datetime

import pytest

from data.quality.validation import EventRules, validate_events
from data.sources.messages import columns_of, rows_of
from data.sources.stream import Message

NOW = datetime(2024, 5, 1, tzinfo=UTC)
SENT = datetime(2024, 4, 1, 12, 30, 0, 250_000, tzinfo=UTC)
EVENT = {"user_id": "anna", "item_id": "x", "event_time": "2024-04-01T12:00:00Z"}


def message(raw: object, entry: str = "7", time: datetime | None = SENT) -> Message:
    return Message("shop", 0, entry, raw if isinstance(raw, bytes) else json.dumps(raw).encode(), time)


def row_of(raw: object, rules: EventRules | None = None, **options: object) -> dict[str, object]:
    chunk = rows_of([message(raw, **options)], [1], rules or EventRules(NOW))
    assert chunk.broken == []
    return chunk.rows.row(0, named=True)


def test_absent_fields_are_filled_in() -> None:
    assert row_of(EVENT) == {
        **EVENT,
        "event_id": message(EVENT).key,
        "event_type": "interaction",
        "value": "1.0",
        "ingest_time": "2024-04-01T12:30:00.250000+00:00",
        "decision_id": None,
    }


def test_null_is_as_good_as_absent() -> None:
    assert row_of(dict.fromkeys(["event_id", "event_type", "value", "ingest_time"]) | EVENT)["value"] == "1.0"


def test_given_fields_stay() -> None:
    given = {"event_id": "e1", "event_type": "buy", "value": 2.5, "decision_id": "d"}
    row = row_of(EVENT | given | {"more": [1]})
    assert {name: row[name] for name in given} == given | {"value": "2.5"}
    assert "more" not in row


def test_fields_have_the_names_of_the_mapping() -> None:
    rules = EventRules(NOW, {"user_id": "uid", "event_time": "ts"}, time_unit="s", event_type="view")
    raw = {"uid": 5, "item_id": 7.0, "ts": 1_700_000_000.5}
    row = row_of(raw, rules)
    assert [row["uid"], row["item_id"], row["ts"], row["event_type"]] == ["5", "7", "1700000000.5", "view"]
    assert list(row) == list(columns_of(rules).values())
    events, broken = validate_events(rows_of([message(raw)], [1], rules).rows, [1], columns_of(rules), rules)
    assert broken == []
    assert events["event_time"].dt.epoch("us").to_list() == [1_700_000_000_500_000]
    assert events["ingest_time"].to_list() == [SENT]


def test_a_key_is_the_same_on_redelivery_and_differs_by_position_and_content() -> None:
    first = message(EVENT)
    assert first.key == Message("shop", 0, "7", first.raw, SENT, deliveries=3).key
    others = [
        message(EVENT, entry="8"),
        message(EVENT | {"value": 2}),
        message(EVENT, time=NOW),
        message(EVENT, time=None),
    ]
    assert len({first.key, *(other.key for other in others)}) == 5


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"9" * 5_000, "not JSON"),
        (b'{"value": NaN}', "not JSON: NaN is no JSON number"),
        (b"[1]", "not a JSON object but a list"),
        (b"null", "not a JSON object but null"),
        (b"3", "not a JSON object but a number"),
        (EVENT | {"user_id": {}}, "user_id is an object"),
        (EVENT | {"item_id": ["x"]}, "item_id is a list"),
        (EVENT | {"value": True}, "value is true or false"),
        (EVENT | {"user_id": 1e17}, "user_id is a floating-point number too large to be exact"),
        (b'{"user_id": 1e999}', "user_id is too large"),
        (b'{"user_id": "\\ud800"}', "user_id holds half a character"),
        (EVENT | {"event_time": 1_700_000_000}, "event_time is a number; say what it counts with --time-unit"),
    ],
    ids=str,
)
def test_a_bad_message_costs_itself_alone(raw: object, reason: str) -> None:
    chunk = rows_of([message(EVENT), message(raw), message(EVENT)], [1, 2, 3], EventRules(NOW))
    assert chunk.lines == [1, 3]
    assert chunk.rows["user_id"].to_list() == ["anna", "anna"]
    assert [row.line for row in chunk.broken] == [2]
    assert chunk.broken[0].reason.startswith(reason)


def test_what_was_sent_after_now_is_known_now() -> None:
    assert row_of(EVENT, EventRules(SENT), time=NOW)["ingest_time"] == SENT.isoformat()


def test_without_a_time_of_sending_an_event_is_known_when_it_happens() -> None:
    assert row_of(EVENT, time=None)["ingest_time"] == EVENT["event_time"]
