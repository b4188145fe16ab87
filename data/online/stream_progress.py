"""How a stream is going: what became of its messages, and how late they were."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from data.sources.stream import Message

DELAYS_KEPT = 100_000
"""Percentiles are those of the last so many messages."""


@dataclass
class StreamProgress:
    """Counters since the start."""

    handled: int = 0
    """Events handed over, those included that were there already."""
    duplicates: int = 0
    """Events that were there already, by event id."""
    quarantined: int = 0
    """Messages that are no events, each counted once however often it was delivered."""
    started: float = field(default_factory=time.monotonic)
    _delays_ms: deque[float] = field(default_factory=lambda: deque(maxlen=DELAYS_KEPT))

    def handed_over(self, messages: Sequence[Message], new: int) -> None:
        """Count messages that are handed over now, and the new ones among their events."""
        now = datetime.now(UTC)
        self.handled += len(messages)
        self.duplicates += len(messages) - new
        self._delays_ms.extend((now - each.time).total_seconds() * 1e3 for each in messages if each.time is not None)

    def delay_ms(self, percent: float) -> float:
        """From when a message was sent to when it was handed over; 0 if there was none."""
        return max(0.0, float(np.percentile(self._delays_ms, percent))) if self._delays_ms else 0.0

    @property
    def messages(self) -> int:
        """Those that are done with."""
        return self.handled + self.quarantined

    @property
    def events_per_second(self) -> float:
        """Events handled, since the start."""
        return self.handled / max(time.monotonic() - self.started, 1e-9)

    def line(self) -> str:
        """For people."""
        return (
            f"{self.handled:,} events handled ({self.events_per_second:,.0f}/s), {self.duplicates:,} of them there "
            f"already, {self.quarantined:,} messages quarantined, delay p50 {self.delay_ms(50):,.0f} ms, "
            f"p99 {self.delay_ms(99):,.0f} ms"
        )

    def figures(self) -> dict[str, float]:
        """For the report."""
        return {
            "events/handled": self.handled,
            "events/duplicates": self.duplicates,
            "messages/quarantined": self.quarantined,
            "events_per_s/stream": round(self.events_per_second, 1),
            "p50_ms/delay": round(self.delay_ms(50), 1),
            "p99_ms/delay": round(self.delay_ms(99), 1),
        }
