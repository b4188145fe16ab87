"""A stream and a store in memory, that fail as told."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from data.quality.validation import EventRules
from data.sources.stream import Message

SENT = datetime.now(UTC) - timedelta(seconds=1)


def message(number: int, *, deliveries: int = 1, **changes: object) -> Message:
    event = {"user_id": "anna", "item_id": f"i{number}", "event_time": "2024-01-01T00:00:00Z"} | changes
    return Message("shop", 0, str(number), json.dumps(event).encode(), SENT, deliveries)


@dataclass
class FakeStream:
    """A stream of one partition with one member."""

    messages: list[Message]
    name: str = "fake://shop"
    rules: EventRules = field(default_factory=lambda: EventRules(datetime.now(UTC)))
    committed: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    """Raised by the next calls of take, before it gives anything."""
    per_take: int = 1_000
    kept: int = 0
    closed: bool = False

    def subscribe(self) -> "FakeStream":
        self._left = list(self.messages)
        return self

    def take(self, count: int, seconds: float) -> list[Message]:
        if self.errors:
            raise self.errors.pop(0)
        several = min(count, self.per_take)
        taken, self._left = self._left[:several], self._left[several:]
        return taken

    def keep(self) -> None:
        self.kept += 1

    def commit(self, messages: Sequence[Message]) -> None:
        self.committed += [each.entry for each in messages]

    def waiting(self) -> int:
        return len(self._left)

    def close(self) -> None:
        self.closed = True


class FakeStore:
    """New by event id. Fails for items in `poison`, all or nothing."""

    def __init__(self, *poison: str) -> None:
        self.poison = poison
        self.events: dict[str, dict[str, object]] = {}
        self.batches: list[list[str]] = []
        self.errors: list[Exception] = []

    def append_events(self, events: pl.DataFrame) -> int:
        self.batches.append(events["item_id"].to_list())
        if self.errors:
            raise self.errors.pop(0)
        if set(self.poison) & set(events["item_id"]):
            raise OverflowError("too much")
        before = len(self.events)
        for event in events.iter_rows(named=True):
            self.events.setdefault(event["event_id"], event)
        return len(self.events) - before

    @property
    def items(self) -> list[object]:
        return [event["item_id"] for event in self.events.values()]


def quarantined(folder: Path) -> dict[str, dict[str, object]]:
    lines = [line for file in sorted(folder.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    return {record["position"]: record for record in map(json.loads, lines)}
