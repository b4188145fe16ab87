"""Moments in time from whatever a source writes: timestamps, epoch numbers or ISO 8601 text, all to µs since 1970 UTC.

A moment without a time zone is taken as UTC: raw data often says none. Who computes moments in code is asked for one
(`data.offline.feature_join`): there a local time would be a mistake that nobody sees.
"""

from typing import Literal

import polars as pl

TimeUnit = Literal["s", "ms", "us"]
MICROSECONDS: dict[TimeUnit, int] = {"s": 1_000_000, "ms": 1_000, "us": 1}

EARLIEST_US = -62_135_596_800_000_000
"""The year 1, where calendars of programs begin."""
LATEST_US = 253_402_300_799_999_999
"""The end of the year 9999, where they end."""

ISO_8601 = (
    r"^\s*(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)?)?\s*"
    r"(?:(Z|z|UTC)|([+-]\d{2}):?(\d{2}))?\s*$"
)
NUMBER = r"^\s*-?\d+(\.\d*)?\s*$"


def can_hold_moments(kind: pl.DataType) -> bool:
    """Whether a column of this type can be read as moments at all."""
    return kind.is_numeric() or isinstance(kind, pl.Datetime | pl.Date | pl.String)


def needs_unit(column: pl.Series) -> bool:
    """Whether the column holds bare numbers, which say nothing about time without a unit."""
    if not isinstance(column.dtype, pl.String):
        return column.dtype.is_numeric()
    texts = column.drop_nulls().filter(column.drop_nulls() != "")
    return not texts.is_empty() and bool(texts.str.contains(NUMBER).all())


def moment_us(column: str, kind: pl.DataType, unit: TimeUnit | None) -> pl.Expr:
    """Microseconds since the epoch (int64); null where there is none or it lies outside the years 1 to 9999.

    `unit` is that of numbers, also of numbers in text; other text is ISO 8601.
    """
    value = pl.col(column)
    if isinstance(kind, pl.Datetime):
        aware = value.dt.convert_time_zone("UTC") if kind.time_zone else value.dt.replace_time_zone("UTC")
        return _within_calendar(aware.dt.epoch("us"))
    if isinstance(kind, pl.Date):
        return _within_calendar(value.cast(pl.Datetime("us")).dt.epoch("us"))
    if unit is None:
        return _within_calendar(_iso_8601(value.cast(pl.String)))
    return _within_calendar(_epoch(value, kind, unit))


def _epoch(value: pl.Expr, kind: pl.DataType, unit: TimeUnit) -> pl.Expr:
    factor = MICROSECONDS[unit]
    text = value.str.strip_chars() if isinstance(kind, pl.String) else value
    rough = text.cast(pl.Float64, strict=False) * factor
    is_sane = rough.is_between(EARLIEST_US, LATEST_US)
    whole = text.cast(pl.Int64, strict=False) if not kind.is_float() else pl.lit(None, dtype=pl.Int64)
    exact = pl.when(is_sane).then(whole) * factor
    return pl.coalesce(exact, pl.when(is_sane).then(rough).round().cast(pl.Int64))


def _iso_8601(text: pl.Expr) -> pl.Expr:
    day, minute, second, _, zone_hours, zone_minutes = (text.str.extract(ISO_8601, group) for group in range(1, 7))
    local = day + "T" + minute.fill_null("00:00") + second.fill_null(":00")
    moment = local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).dt.epoch("us")
    hours = zone_hours.cast(pl.Int64).fill_null(0)
    minutes = zone_minutes.cast(pl.Int64).fill_null(0)
    sign = pl.when(zone_hours.str.starts_with("-").fill_null(value=False)).then(-1).otherwise(1)
    return moment - (hours * 60 + sign * minutes) * 60_000_000


def _within_calendar(moment: pl.Expr) -> pl.Expr:
    return pl.when(moment.is_between(EARLIEST_US, LATEST_US)).then(moment)
