"""How many requests come at which time of the day or week, learnt while they come."""

import json
import math
from pathlib import Path
from typing import Any

from cluster.errors import TowerlineError
from cluster.files import write_atomically

LEVEL_SMOOTHING = 0.3
"""How much one slot says of whether today is busier than other days."""
LEAST_LEVEL, MOST_LEVEL = 0.5, 2.0
"""One odd slot halves or doubles the forecast at most."""


class RequestHistory:
    """Requests per second by slot of a season: exponentially smoothed over the seasons that were seen.

    Times are seconds since the epoch (UTC), so a season of a week begins on a Thursday, which matters to nobody.
    """

    def __init__(self, season_s: float, slot_s: float, smoothing: float) -> None:
        """`season_s` seconds in slots of about `slot_s`; a new season counts for `smoothing` of what a slot holds."""
        self._season_s = season_s
        self._smoothing = smoothing
        self._slots = max(1, round(season_s / slot_s))
        self._expected_S = [math.nan] * self._slots
        self._slot = -1
        self._sum, self._count = 0.0, 0
        self._level = 1.0

    @property
    def slot_s(self) -> float:
        """Seconds of a slot."""
        return self._season_s / self._slots

    def observe(self, time: float, requests_per_s: float) -> bool:
        """Take a measurement, in the order of time. True if it begins a slot: the one before is in the history now."""
        slot = math.floor(time / self.slot_s)
        ended = slot != self._slot and self._count > 0
        if ended:
            self._close_slot()
        self._slot = slot
        self._sum += requests_per_s
        self._count += 1
        return ended

    def expected(self, start: float, end: float) -> float | None:
        """The most requests per second between two times, at the level of the last slots; None where nothing is known.

        Between the middles of two slots the rate is interpolated: a ramp is not a staircase.
        """
        first, last = start / self.slot_s - 0.5, end / self.slot_s - 0.5
        places = (first, *range(math.ceil(first), math.floor(last) + 1), last)
        known = [rate for rate in map(self._at, places) if not math.isnan(rate)]
        return max(known) * self._level if known else None

    def _at(self, place: float) -> float:
        """The rate at a fractional number of slots since the epoch; NaN where a neighbour is not known."""
        below = math.floor(place)
        low, high = self._expected_S[below % self._slots], self._expected_S[(below + 1) % self._slots]
        share = place - below
        return low if share == 0 else low * (1 - share) + high * share

    def _close_slot(self) -> None:
        """Write the slot down, and note how much busier it was than expected."""
        rate, place = self._sum / self._count, self._slot % self._slots
        before = self._expected_S[place]
        if math.isnan(before):
            self._expected_S[place] = rate
        else:
            if before > 0:
                level = min(MOST_LEVEL, max(LEAST_LEVEL, rate / before))
                self._level += LEVEL_SMOOTHING * (level - self._level)
            self._expected_S[place] = before + self._smoothing * (rate - before)
        self._sum, self._count = 0.0, 0

    def save(self, path: Path) -> None:
        """Write what was learnt, the slot that is not over yet left out."""
        known = [None if math.isnan(rate) else rate for rate in self._expected_S]
        content = {"season_s": self._season_s, "slots": self._slots, "level": self._level, "requests_per_s": known}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content))

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            TowerlineError: the file is not such a history, or one of other seasons or slots.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            shape = (content["season_s"], content["slots"])
            rates = [math.nan if rate is None else float(rate) for rate in content["requests_per_s"]]
            level = float(content["level"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TowerlineError(
                f"{path} is no history of requests ({error!r}); delete it to begin a new one"
            ) from error
        if shape != (self._season_s, self._slots) or len(rates) != self._slots:
            raise TowerlineError(
                f"{path} has {shape[1]} slots of a season of {shape[0]:g} s, expected {self._slots} of "
                f"{self._season_s:g} s; delete it, or set season and slot_s as they were"
            )
        self._expected_S, self._level = rates, level
