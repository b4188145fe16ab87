from collections.abc import Callable
from typing import Any

import polars as pl

from data.events import with_event_ids


def ids(events: pl.DataFrame) -> list[str]:
    return with_event_ids(events.drop("event_id"))["event_id"].to_list()


def test_the_same_content_gives_the_same_ids_whatever_comes_around(make_events: Callable[..., Any]) -> None:
    rows = [("a", "x", 1.0, 0), ("a", "x", 1.0, 0), ("b", "x", 1.0, 0)]
    first = ids(make_events(rows))
    assert len(set(first)) == 3
    longer = ids(make_events([("z", "z", 9.0, 9), *rows, ("a", "x", 1.0, 0)]))
    assert longer[1:4] == first
    assert longer[4] not in first


def test_ids_do_not_confuse_where_a_name_ends(make_events: Callable[..., Any]) -> None:
    rows = [("a\n1", "x", 1.0, 0), ("a", "1\nx", 1.0, 0), ("ab", "c", 1.0, 0), ("a", "bc", 1.0, 0)]
    assert len(set(ids(make_events(rows)))) == 4


def test_ids_are_pinned() -> None:
    """A change here gives every event a new id: appended feedback would count twice."""
    row = {"user_id": ["u"], "item_id": ["é"], "event_type": ["t"], "value": [0.5], "source_row": [7]}
    time = pl.Series("event_time", [1_000_000]).cast(pl.Datetime("us", "UTC"))
    assert ids(pl.DataFrame(row).with_columns(time, event_id=pl.lit(""))) == ["15d692cb922c884238b6bb7ab65cf2c2"]
