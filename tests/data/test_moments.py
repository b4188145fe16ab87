from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.moments import moment_us, needs_unit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(values: list, unit: str | None = None, dtype: pl.DataType | None = None) -> list[datetime | None]:
    column = pl.Series("t", values, dtype=dtype)
    moments = column.to_frame().select(moment_us("t", column.dtype, unit)).to_series()
    assert moments.dtype == pl.Int64
    return [None if us is None else EPOCH + timedelta(microseconds=us) for us in moments]


NOON = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-29 12:00", NOON),
        ("2024-02-29T12:00:00Z", NOON),
        (" 2024-02-29T12:00:00.000+00:00 ", NOON),
        ("2024-02-29 14:00:00+02:00", NOON),
        ("2024-02-29T08:30:00-0330", NOON),
        ("2024-02-29T12:00:00.123456789", NOON.replace(microsecond=123456)),
        ("2024-02-29 12:00:00 UTC", NOON),
        ("1969-12-31T23:59:59Z", EPOCH - timedelta(seconds=1)),
        ("2023-02-29", None),
        ("2024-13-01", None),
        ("yesterday", None),
        ("29.02.2024", None),
        ("1709208000", None),
        ("", None),
    ],
)
def test_text_is_iso_8601_and_without_a_zone_utc(text: str, expected: datetime | None) -> None:
    assert read([text]) == [expected]


@settings(max_examples=100, deadline=None)
@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_whatever_python_writes_is_read_back(moment: datetime, minutes: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert read([local.isoformat()]) == [local.astimezone(UTC)]


@pytest.mark.parametrize("kind", [pl.Int64(), pl.Float64(), pl.String()])
@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1_000), ("us", 1_000_000)])
def test_numbers_count_in_their_unit(kind: pl.DataType, unit: str, factor: int) -> None:
    values = pl.Series([1_709_208_000 * factor]).cast(kind).to_list()
    assert read(values, unit, kind) == [NOON]


def test_fractions_of_seconds_and_numbers_that_are_none() -> None:
    values = ["1709208000.5", " 7 ", "-1", "x", "nan", "inf", "1e30", "99999999999999999999"]
    half, seven, before, *rest = read(values, "s")
    assert (half, seven) == (NOON + timedelta(seconds=0.5), EPOCH + timedelta(seconds=7))
    assert before == EPOCH - timedelta(seconds=1)
    assert rest == [None] * 5
    assert read([2**62, 2**40], "s") == [None, None]


def test_typed_times_of_any_kind() -> None:
    naive = NOON.replace(tzinfo=None)
    assert read([naive, None], dtype=pl.Datetime("ms")) == [NOON, None]
    assert read([naive], dtype=pl.Datetime("ns")) == [NOON]
    assert read([NOON], dtype=pl.Datetime("us", "Asia/Tokyo")) == [NOON]
    assert read([date(2024, 2, 29)]) == [datetime(2024, 2, 29, tzinfo=UTC)]


def test_bare_numbers_need_a_unit() -> None:
    assert needs_unit(pl.Series([1, 2]))
    assert needs_unit(pl.Series(["881250949", "", None, "1.5"]))
    assert not needs_unit(pl.Series(["2024-01-01", "881250949"]))
    assert not needs_unit(pl.Series(["", None]))
    assert not needs_unit(pl.Series([NOON]))
