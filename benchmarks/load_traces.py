"""Requests per second over time: generated days, a flash sale, and what was recorded."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data.schema import EVENT_TIME

Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """How many requests arrive in each second."""

    name: str
    rates_T: Rates
    """Expected requests per second."""
    season_s: float
    """After which it repeats itself, more or less."""
    measured_from_s: int
    """Before that policies may learn; what happens then counts for nobody."""
    sale: tuple[int, int] | None = None
    """Seconds of the trace between which a sale was announced."""

    def arrivals(self, seed: int) -> NDArray[np.int64]:
        """Requests (T,) drawn from a Poisson distribution, second by second."""
        return np.random.default_rng(seed).poisson(self.rates_T)


def diurnal(day_s: int, days: int, peak: float, seed: int) -> Trace:
    """Nights, steep mornings and two peaks, no two days alike; the first of the `days` is for learning."""
    shares_T = np.arange(days * day_s) / day_s % 1
    shape_T = 0.08 + 0.7 * _bell(shares_T, 0.42, 0.09) + 0.92 * _bell(shares_T, 0.83, 0.06)
    draw = np.random.default_rng(seed)
    level_T = np.repeat(draw.uniform(0.9, 1.1, days), day_s)
    minutes = draw.lognormal(0, 0.08, len(shares_T) * 240 // day_s + 1)
    noise_T = np.repeat(minutes, -(-day_s // 240))[: len(shares_T)]
    return Trace("diurnal", peak * shape_T * level_T * noise_T, day_s, measured_from_s=day_s)


def flash_sale(day_s: int, days: int, peak: float, seed: int) -> Trace:
    """Such days, and at noon of the last one a sale: five times as many within two seconds, gone after a while."""
    plain = diurnal(day_s, days, peak / 5, seed)
    start, length = round(0.6 * day_s), round(0.04 * day_s)
    rates_T = plain.rates_T.copy()
    first = (days - 1) * day_s + start
    rates_T[first : first + length] += peak * np.linspace(1, 0.6, length)
    return Trace("flash_sale", rates_T, day_s, measured_from_s=day_s, sale=(first, first + length))


def recorded(events: pl.DataFrame, peak: float, speed: float) -> Trace:
    """The rhythm in which events really came, `speed` times as fast; the busiest second has `peak` requests."""
    seconds = (events[EVENT_TIME].dt.epoch("s") - events[EVENT_TIME].dt.epoch("s").min()).to_numpy() / speed
    counts_T = np.bincount(seconds.astype(np.int64)).astype(np.float64)
    week = round(7 * 86_400 / speed)
    smooth_T = np.convolve(counts_T, np.ones(SMOOTH_S) / SMOOTH_S, mode="same")
    return Trace("recorded", peak * smooth_T / smooth_T.max(), week, measured_from_s=2 * week)


SMOOTH_S = 60
"""A recorded event stands for many: its second is spread over the minute."""


def _bell(shares_T: Rates, middle: float, width: float) -> Rates:
    bell_T: Rates = np.exp(-0.5 * ((shares_T - middle) / width) ** 2)
    return bell_T
