"""What a feature can say about an entity's past events, and over how long a past.

Windows are sawtooth windows: the end is the moment asked for, to the microsecond; the beginning moves on in hops, so
that a window of 7 days covers at least 7 days and at most 7 days and one hop. An event then leaves every window at a
moment that depends on the event alone. That is what lets the online store keep a bounded number of tiles per entity
and still agree with the exact batch computation at every microsecond.

Every feature has its default where the entity has no event that counts (or the newest is older than the view's time to
live), and a mean also where no event in its window has a value. A count over an empty window is 0, a default of its
own or not.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import polars as pl

from cluster.errors import TowerlineError

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)

HOPS = (
    (2 * HOUR, MINUTE),
    (6 * HOUR, 5 * MINUTE),
    (2 * DAY, 30 * MINUTE),
    (14 * DAY, 3 * HOUR),
    (90 * DAY, DAY),
    (730 * DAY, 7 * DAY),
)
"""Longest window → its hop. Each hop is a multiple of the one before, so that fine tiles merge into coarse ones."""

LONGEST_WINDOW = HOPS[-1][0]


@dataclass(frozen=True)
class Window:
    """The past that a feature looks at: a length, or all time (None)."""

    length: timedelta | None

    def __post_init__(self) -> None:
        if self.length is None:
            return
        if not HOUR <= self.length <= LONGEST_WINDOW:
            raise TowerlineError(f"a window of {self.length} is not in {HOUR} to {LONGEST_WINDOW}; or take ALL_TIME")
        if self.length % self.hop:
            raise TowerlineError(
                f"a window of {self.length} is no multiple of its hop {self.hop}; take "
                f"{self.length - self.length % self.hop} or {self.length - self.length % self.hop + self.hop}"
            )

    @property
    def hop(self) -> timedelta:
        """The step in which the beginning of a finite window moves."""
        assert self.length is not None
        return next(hop for longest, hop in HOPS if self.length <= longest)

    @property
    def length_us(self) -> int:
        """Length of a finite window in µs."""
        assert self.length is not None
        return self.length // _MICROSECOND

    @property
    def hop_us(self) -> int:
        """Hop of a finite window in µs."""
        return self.hop // _MICROSECOND

    def expires_us(self, event_time_us: Any) -> Any:
        """The first moment (µs) at which an event of a finite window no longer counts; for an int or an int64 array."""
        return event_time_us - event_time_us % self.hop_us + self.hop_us + self.length_us

    def begins_us(self, moment_us: Any) -> Any:
        """Event time (µs) from which on events count at a moment; for an int or an int64 array."""
        begin = moment_us - self.length_us
        return begin - begin % self.hop_us

    def __str__(self) -> str:
        if self.length is None:
            return "all time"
        return f"{self.length // DAY} d" if self.length % DAY == timedelta() else f"{self.length / HOUR:g} h"


ALL_TIME = Window(None)


def hours(count: int) -> Window:
    """A window of so many hours."""
    return Window(count * HOUR)


def days(count: int) -> Window:
    """A window of so many days."""
    return Window(count * DAY)


@dataclass(frozen=True)
class Count:
    """Number of events."""

    window: Window = ALL_TIME
    default: int = 0
    dtype: ClassVar[pl.DataType] = pl.Int64()


@dataclass(frozen=True)
class Sum:
    """Sum of a numeric column; null and NaN add nothing.

    Each value is rounded to a step of 2**-16 (1.5e-5), see `data.temporal.cells`: scale values much smaller than 1e-4
    by a derived column first, such as `columns={"millionths": pl.col("value") * 1e6}`.
    """

    of: str
    window: Window = ALL_TIME
    default: float = 0.0
    dtype: ClassVar[pl.DataType] = pl.Float32()


@dataclass(frozen=True)
class Mean:
    """Mean of a numeric column over the events where it has a value: null and NaN are none.

    Each value is rounded to a step of 2**-16, as in `Sum`: scale values much smaller than 1e-4 first.
    """

    of: str
    window: Window = ALL_TIME
    default: float = 0.0
    dtype: ClassVar[pl.DataType] = pl.Float32()


@dataclass(frozen=True)
class Rate:
    """Events an hour over a finite window."""

    window: Window
    default: float = 0.0
    dtype: ClassVar[pl.DataType] = pl.Float32()

    def __post_init__(self) -> None:
        if self.window.length is None:
            raise TowerlineError("a rate needs a finite window, such as days(7)")


@dataclass(frozen=True)
class Distinct:
    """Number of distinct values of a column; null is none, NaN is one, 0.0 and -0.0 are the same."""

    of: str
    window: Window = ALL_TIME
    default: int = 0
    dtype: ClassVar[pl.DataType] = pl.Int64()


@dataclass(frozen=True)
class LastN:
    """The values of a column in the newest `length` events, oldest first."""

    of: str
    length: int
    default: tuple[()] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise TowerlineError(f"a sequence has length {self.length}, expected 1 or more events")


@dataclass(frozen=True)
class TimeSince:
    """Seconds since the newest event."""

    default: float = 0.0
    dtype: ClassVar[pl.DataType] = pl.Float64()


@dataclass(frozen=True)
class RecencyWeighted:
    """Sum over all events of `of` (1 if None) times 2 ** -(age / half_life): exponential forgetting.

    What an event adds is cut as in `data.temporal.cells`: ±1e9 at most, and nothing for null and NaN.

    Cormode et al., Forward Decay, ICDE 2009. The one aggregation whose additions round: batch and online agree to the
    precision of a float32, not to the last bit of a float64.
    """

    half_life: timedelta
    of: str | None = None
    default: float = 0.0
    dtype: ClassVar[pl.DataType] = pl.Float32()

    def __post_init__(self) -> None:
        if self.half_life < MINUTE:
            raise TowerlineError(f"a half-life of {self.half_life} is too short, expected a minute or more")


@dataclass(frozen=True)
class Latest:
    """The value of a column in the newest event, which may be null: a point-in-time lookup. It keeps the type."""

    of: str
    default: Any = None


Aggregation = Count | Sum | Mean | Rate | Distinct | LastN | TimeSince | RecencyWeighted | Latest
