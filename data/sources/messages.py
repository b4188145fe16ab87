"""Messages of a stream → rows: one JSON object per event, read so that a bad message costs itself alone."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import polars as pl

from data.moments import MICROSECONDS
from data.quality.validation import DEFAULT_VALUE, LARGEST_EXACT_FLOAT, OPTIONAL, REQUIRED, EventRules
from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, INGEST_TIME, VALUE
from data.sources.chunk import Broken, Chunk
from data.sources.stream import Message

NAMES = (*REQUIRED, *OPTIONAL)
TIMES = (EVENT_TIME, INGEST_TIME)


class _UnusableError(ValueError):
    """What is wrong with a message."""


def columns_of(rules: EventRules) -> dict[str, str]:
    """Column of the contract → field of a message, for all columns."""
    return {name: rules.columns.get(name, name) for name in NAMES}


def rows_of(messages: Sequence[Message], lines: Sequence[int], rules: EventRules) -> Chunk:
    """The fields of the contract as text; messages that are no JSON objects, or have a field of no use, are broken.

    An optional field that is absent or null is filled in: `event_id` from where the message stands and what it says,
    `ingest_time` with the moment at which it was sent, `value` and `event_type` as in a file without such columns.
    """
    fields = columns_of(rules)
    columns: dict[str, list[str | None]] = {field: [] for field in fields.values()}
    kept: list[int] = []
    broken: list[Broken] = []
    for message, line in zip(messages, lines, strict=True):
        try:
            row = _row(message, fields, rules)
        except _UnusableError as error:
            broken.append(Broken(line, str(error), message.raw.decode(errors="backslashreplace")))
            continue
        kept.append(line)
        for field, text in row.items():
            columns[field].append(text)
    return Chunk(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), kept, broken)


def _row(message: Message, fields: Mapping[str, str], rules: EventRules) -> dict[str, str | None]:
    content = _parse(message.raw)
    row: dict[str, str | None] = {}
    for name, field in fields.items():
        value = content.get(field)
        is_plain = isinstance(value, str) and value.isascii()
        row[field] = value if is_plain else _text(name, value, rules)
    if row[fields[EVENT_ID]] is None:
        row[fields[EVENT_ID]] = message.key
    if row[fields[EVENT_TYPE]] is None:
        row[fields[EVENT_TYPE]] = rules.event_type
    if row[fields[VALUE]] is None:
        row[fields[VALUE]] = str(DEFAULT_VALUE)
    if row[fields[INGEST_TIME]] is None:
        row[fields[INGEST_TIME]] = _sent(message, rules) or row[fields[EVENT_TIME]]
    return row


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _UnusableError("not UTF-8") from error
    except RecursionError as error:
        raise _UnusableError("not JSON: nested too deeply") from error
    except ValueError as error:
        raise _UnusableError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _UnusableError(f"not a JSON object but {_kind(content)}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _text(name: str, value: object, rules: EventRules) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name in TIMES and rules.time_unit is None:
            raise _UnusableError(f"{name} is a number; say what it counts with --time-unit s, ms or us")
        return _number(name, value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _UnusableError(f"{name} is {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"{name} holds half a character (a lone surrogate)") from error
    return value


def _number(name: str, value: float) -> str:
    """As text; a whole number has no ".0", for it may be an id."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise _UnusableError(f"{name} is too large")
    if not value.is_integer() or name == VALUE:
        return repr(value)
    if abs(value) >= LARGEST_EXACT_FLOAT:
        raise _UnusableError(f"{name} is a floating-point number too large to be exact")
    return str(int(value))


def _kind(value: object) -> str:
    words = {dict: "an object", list: "a list", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(type(value), "a number")


def _sent(message: Message, rules: EventRules) -> str | None:
    """When the message was sent, as the rules read times; a broker whose clock is fast does not send in the future."""
    if message.time is None:
        return None
    sent = min(message.time, rules.now).astimezone(UTC)
    if rules.time_unit is None:
        return sent.isoformat()
    return repr(sent.timestamp() * 1_000_000 / MICROSECONDS[rules.time_unit])
