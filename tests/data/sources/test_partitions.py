import pytest

from cluster.errors import TowerlineError
from data.sources.partitions import Partition, Partitions


def days(*values: str | None, key: str = "date") -> list[Partition]:
    return [((key, value),) for value in values]


JANUARY = days("2024-01-01", "2024-01-02", "2024-01-02", "2024-01-04")


def test_only_what_was_asked_for_is_chosen() -> None:
    assert Partitions.parse("date=2024-01-01..2024-01-02").choose("x", JANUARY) == [True, True, True, False]
    assert Partitions.parse("date=2024-01-04").choose("x", JANUARY) == [False, False, False, True]
    assert Partitions.parse("month=9..10").choose("x", days("08", "09", "10", key="month")) == [False, True, True]
    assert Partitions.parse("shop=a..c").choose("x", days("a", "b", "c", "d", key="shop")) == [True, True, True, False]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "x: partition date=2024-01-03 is missing between 2024-01-01 and 2024-01-04.*--allow-missing-partitions"),
        ("date=2024-01-02..2024-01-05", "x: partition date=2024-01-03, date=2024-01-05 of date=2024-01-02..2024-01-05"),
        ("date=2023-12-01..2024-01-01", "date=2023-12-05 and 26 more of date=2023-12-01..2024-01-01 is missing"),
        ("hour=1", "x is not partitioned by 'hour': no folder hour=…"),
    ],
)
def test_a_missing_partition_is_named(asked: str | None, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        Partitions.parse(asked).choose("x", JANUARY)


def test_a_gap_may_be_allowed() -> None:
    assert Partitions(may_have_gaps=True).choose("x", JANUARY) == [True] * 4
    asked = Partitions.parse("date=2024-01-03..2024-01-09", may_have_gaps=True)
    assert asked.choose("x", JANUARY) == [False, False, False, True]
    with pytest.raises(TowerlineError, match=r"x has no partition date=2024-01-05\.\.2024-01-09"):
        Partitions.parse("date=2024-01-05..2024-01-09", may_have_gaps=True).choose("x", JANUARY)


def test_what_is_no_day_has_no_gaps() -> None:
    for partitions in (days("a", "c"), days("2024-01-01", None), days("2024-13-01", "2024-13-03"), [(), ()]):
        assert all(Partitions().choose("x", partitions))


@pytest.mark.parametrize("text", ["date", "=1..2", "date=2024-01-02..2024-01-01"])
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(TowerlineError, match="--partitions"):
        Partitions.parse(text)
