"""Events of a shop that never was: any number, from a seed, in constant memory.

Users and items follow power laws, times are those of a steady stream. Options bring what real logs bring: rows that
arrive late, and one user with a large share of all events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, INGEST_TIME, ITEM_ID, USER_ID, VALUE

START = datetime(2024, 1, 1, tzinfo=UTC)
EVENTS_AT_ONCE = 500_000
EVENT_TYPES = ("view", "click", "cart", "buy")
GIANT = "giant"
"""The user with a share of events of its own."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class EventStream:
    """What to generate. The same fields give the same events."""

    events: int
    seed: int = 0
    days: int = 90
    late_share: float = 0.0
    """Share of events that the system learnt of minutes to two days after they happened."""
    giant_share: float = 0.0
    """Share of events that are one user's."""

    @property
    def users(self) -> int:
        """Size of the population that users are drawn from."""
        return max(10, self.events // 50)

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return max(10, self.events // 250)

    def frames(self) -> Iterator[pl.DataFrame]:
        """The events, sorted by time, some at a time."""
        span = timedelta(days=self.days) // _MICROSECOND
        for first in range(0, self.events, EVENTS_AT_ONCE):
            count = min(EVENTS_AT_ONCE, self.events - first)
            begin, end = (span * place // self.events for place in (first, first + count))
            yield self._frame(np.random.default_rng([self.seed, first]), first, count, begin, end)

    def _frame(self, random: np.random.Generator, first: int, count: int, begin: int, end: int) -> pl.DataFrame:
        times = np.sort(random.integers(begin, end, count)) + round(START.timestamp() * 1e6)
        users = _power_law(random, count, self.users, exponent=0.5)
        items = _power_law(random, count, self.items, exponent=0.8)
        is_giant = random.random(count) < self.giant_share
        delays = random.integers(60_000_000, 2 * 86_400_000_000, count) * (random.random(count) < self.late_share)
        frame = pl.DataFrame(
            {
                EVENT_ID: np.arange(first, first + count),
                USER_ID: users,
                ITEM_ID: items,
                EVENT_TYPE: random.integers(0, len(EVENT_TYPES), count).astype(np.uint32),
                VALUE: (random.integers(1, 11, count) / 2).astype(np.float32),
                EVENT_TIME: times,
                INGEST_TIME: times + delays,
            }
        )
        return frame.with_columns(
            pl.format("e{}", EVENT_ID).alias(EVENT_ID),
            pl.when(pl.Series(is_giant)).then(pl.lit(GIANT)).otherwise(pl.format("u{}", USER_ID)).alias(USER_ID),
            pl.format("i{}", ITEM_ID).alias(ITEM_ID),
            pl.col(EVENT_TYPE).replace_strict(dict(enumerate(EVENT_TYPES)), return_dtype=pl.String),
            pl.col(EVENT_TIME, INGEST_TIME).cast(pl.Datetime("us", "UTC")),
        )


def write_events(stream: EventStream, folder: Path) -> list[Path]:
    """Write Parquet files that sort in the order of time; files that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"part-{number:05d}.parquet" for number in range(-(-stream.events // EVENTS_AT_ONCE))]
    if not all(file.exists() for file in files):
        for file, frame in zip(files, stream.frames(), strict=True):
            frame.write_parquet(file, compression="zstd", compression_level=1)
    return files


def _power_law(random: np.random.Generator, count: int, size: int, exponent: float) -> npt.NDArray[np.int64]:
    """Ranks 0 to size - 1 with density rank ** -exponent, by inverting the continuous distribution."""
    power = 1 - exponent
    ranks: npt.NDArray[np.float64] = ((size**power - 1) * random.random(count) + 1) ** (1 / power) - 1
    return np.minimum(ranks, size - 1).astype(np.int64)
