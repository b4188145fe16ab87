"""A read of the online store, computed again from the events alone."""

from datetime import UTC, datetime, timedelta

import polars as pl

from data.aggregations import Count, LastN, Mean, TimeSince, hours
from data.checks.replay import KNOWN_UNTIL, READ, replay
from data.views import EVENT_TYPES, EVERYTHING, USER, Entity, FeatureView

START = datetime(2024, 5, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def view(entity: Entity) -> FeatureView:
    features = {
        "n": Count(),
        "n_hour": Count(hours(1)),
        "mean": Mean("value"),
        "items": LastN("item_id", 3),
        "since": TimeSince(),
    }
    return FeatureView("v", entity, features, "made up", "tests")


def events(*rows: tuple[str, str, float, float]) -> pl.DataFrame:
    """(user, item, event minute, ingest minute); the value is 1, 2, 3, …"""
    frame = pl.DataFrame(
        {
            "event_id": [str(number) for number in range(len(rows))],
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "event_type": ["view"] * len(rows),
            "value": [float(number + 1) for number in range(len(rows))],
            "event_time": [at(row[2]) for row in rows],
            "ingest_time": [at(row[3]) for row in rows],
            "decision_id": [None] * len(rows),
            "source_row": range(len(rows)),
        },
        schema=EVENT_TYPES,
    )
    return frame.select(list(EVENT_TYPES))


def reads(entity: Entity, *rows: tuple[str, float, float | None]) -> pl.DataFrame:
    """(id, minute, known until minute)."""
    frame = pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "event_time": [at(row[1]) for row in rows],
            KNOWN_UNTIL: [None if row[2] is None else at(row[2]) for row in rows],
        },
        schema={"user_id": pl.String, "event_time": TIME, KNOWN_UNTIL: TIME},
    )
    return (frame if entity.key else frame.drop("user_id")).with_row_index(READ)


PAST = events(("a", "x", 0, 0), ("b", "y", 1, 1), ("a", "y", 2, 2), ("a", "z", 3, 8))


def test_what_was_known_at_the_moment_is_the_join_as_of_it() -> None:
    """The last event of user a arrived five minutes late."""
    found = replay([view(USER)], PAST, reads(USER, ("a", 9, 8), ("b", 9, 1), ("a", 5, 2), ("c", 9, None), ("a", 70, 8)))
    assert found["n"].to_list() == [3, 1, 2, 0, 3]
    assert found["items"].to_list() == [["x", "y", "z"], ["y"], ["x", "y"], [], ["x", "y", "z"]]
    assert found["since"].to_list() == [360.0, 480.0, 180.0, 0.0, 67 * 60]
    assert found["n_hour"].to_list() == [3, 1, 2, 0, 0]


def test_a_write_after_the_moment_and_before_the_read_counts() -> None:
    """Written at minute 8; the read's moment was minute 7.9, but the read came after the write, and so is as of it."""
    (found,) = replay([view(USER)], PAST, reads(USER, ("a", 7.9, 8))).rows(named=True)
    assert (found["n"], found["n_hour"], found["items"]) == (3, 3, ["x", "y", "z"])
    assert found["since"] == 300.0


def test_a_write_before_the_moment_that_the_read_missed_does_not_count() -> None:
    (found,) = replay([view(USER)], PAST, reads(USER, ("a", 8.1, 2))).rows(named=True)
    assert (found["n"], found["items"], found["mean"]) == (2, ["x", "y"], 2.0)


def test_a_moment_before_a_stored_event_is_the_moment_of_that_event() -> None:
    """The clock of the replica that stored the last event is ten minutes ahead."""
    ahead = events(("a", "x", 0, 0), ("a", "y", 20, 20))
    (found,) = replay([view(USER)], ahead, reads(USER, ("a", 10, 20))).rows(named=True)
    assert (found["n"], found["since"]) == (2, 0.0)


def test_reads_of_everything_know_only_what_they_know() -> None:
    found = replay([view(EVERYTHING)], PAST, reads(EVERYTHING, ("", 9, 8), ("", 9, 2), ("", 2.5, 8), ("", -5, None)))
    assert found["n"].to_list() == [4, 3, 4, 0]


def test_what_a_read_brought_along_is_its_own() -> None:
    """Two reads of one user at one moment; the second came with an item."""
    extra = events(("a", "new", 9, 9)).with_columns(
        pl.lit(1, dtype=pl.UInt32).alias(READ), pl.lit(2**62).alias("source_row")
    )
    found = replay([view(USER)], PAST, reads(USER, ("a", 9, 8), ("a", 9, 8), ("c", 9, None)), extra)
    assert found["n"].to_list() == [3, 4, 0]
    assert found["items"].to_list() == [["x", "y", "z"], ["y", "z", "new"], []]
    assert found["since"].to_list() == [360.0, 0.0, 0.0]


def test_no_reads_and_no_events() -> None:
    assert replay([view(USER)], PAST, reads(USER)).height == 0
    assert replay([view(USER)], PAST.clear(), reads(USER, ("a", 9, None)))["n"].to_list() == [0]
    assert replay([view(EVERYTHING)], PAST.clear(), reads(EVERYTHING, ("", 9, None)))["n"].to_list() == [0]
