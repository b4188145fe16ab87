"""A circuit breaker: a stage that keeps failing is left alone for a while (Nygard, "Release It!", 2007, chapter 5).

Closed, it lets every call through. After too many failures among the last calls it opens: nobody waits for the stage
any more. After a pause it is half open: a few calls try whether the stage answers again, and close it or open it anew.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

logger = logging.getLogger(__name__)

State = Literal["closed", "open", "half_open"]
Result = Literal["answered", "failed", "unknown"]
"""What became of a call; `unknown` tells nothing about the stage: its caller left, or gave it hardly any time."""


class BreakerConfig(BaseModel):
    """When a remote stage is left alone, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failures: PositiveInt = 5
    """Failures among the last `window` calls that open the circuit."""

    window: PositiveInt = 20
    """Calls that are looked back on."""

    open_s: PositiveFloat = 5.0
    """Seconds for which the stage is left alone."""

    trials: PositiveInt = 1
    """Calls that are let through after that, all of which have to be answered."""

    patience_s: NonNegativeFloat = 0.25
    """A call that was given less than this many seconds and not answered is no failure of the stage."""

    @model_validator(mode="after")
    def _failures_fit_the_window(self) -> "BreakerConfig":
        if self.failures > self.window:
            raise ValueError(f"failures is {self.failures}, which is over window {self.window}; raise window")
        return self


class CircuitBreaker:
    """Of one stage. Belongs to one event loop."""

    def __init__(self, name: str, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds from any origin that never go back."""
        self._name = name
        self._config = config
        self._clock = clock
        self._state: State = "closed"
        self._period = 0
        self._changed = clock()
        self._failed: deque[bool] = deque(maxlen=config.window)
        self._trials_left = 0
        self._trials_running = 0

    @property
    def state(self) -> State:
        """Whether calls are let through."""
        return self._state

    def admit(self) -> int | None:
        """A ticket for one call, to be given back to `record`; None if the stage is to be left alone."""
        if self._state == "open" and self._clock() - self._changed >= self._config.open_s:
            self._enter("half_open")
        if self._state == "open":
            return None
        if self._state == "half_open":
            if self._trials_running == self._trials_left:
                return None
            self._trials_running += 1
        return self._period

    def record(self, ticket: int, result: Result) -> None:
        """Say what became of a call. One that began before the state changed last counts no longer."""
        if ticket != self._period:
            return
        if self._state == "half_open":
            self._trials_running -= 1
            self._trials_left -= result == "answered"
            if result == "failed":
                self._enter("open")
            elif not self._trials_left:
                self._enter("closed")
        elif result != "unknown":
            self._failed.append(result == "failed")
            if sum(self._failed) >= self._config.failures:
                self._enter("open")

    def unanswered(self, ticket: int, waited_s: float) -> None:
        """Say that the caller of a call gave up after so many seconds."""
        self.record(ticket, "failed" if waited_s >= self._config.patience_s else "unknown")

    def _enter(self, state: State) -> None:
        logger.warning("stage %s: the circuit is %s now", self._name, state.replace("_", " "))
        self._state = state
        self._period += 1
        self._changed = self._clock()
        self._failed.clear()
        self._trials_left = self._config.trials
        self._trials_running = 0
