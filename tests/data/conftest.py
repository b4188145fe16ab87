"""Small data sets that the tests of this room share."""

import resource
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data.dataset import Dataset, write_dataset
from data.events import with_event_ids
from data.quality.validation import polars_schema
from data.schema import EVENTS, ITEMS, QUARANTINE, USERS

START = datetime(2024, 1, 1, tzinfo=UTC)

Row = tuple[str, str, float, int]
"""user, item, value, second."""


def events_of(rows: list[Row]) -> pl.DataFrame:
    """Events in the order of the source; known as soon as they happen."""
    times = [START + timedelta(seconds=row[3]) for row in rows]
    frame = pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "event_type": ["view"] * len(rows),
            "value": [row[2] for row in rows],
            "event_time": times,
            "ingest_time": times,
            "decision_id": [None] * len(rows),
            "source_row": list(range(len(rows))),
        },
        schema={name: kind for name, kind in polars_schema(EVENTS).items() if name != "event_id"},
    )
    return with_event_ids(frame).select(EVENTS.names)


@pytest.fixture(scope="session")
def make_events() -> Callable[[list[Row]], pl.DataFrame]:
    return events_of


@pytest.fixture(scope="session")
def write_small() -> Callable[..., Dataset]:
    """Write events under a name, with two items and one user described."""

    def write(home: Path, events: pl.DataFrame, name: str = "small") -> Dataset:
        items = pl.DataFrame(
            {"item_id": ["x", "unseen"], "title": ["The X", None], "attributes": [["kind=a"], []]},
            schema=polars_schema(ITEMS),
        )
        users = pl.DataFrame({"user_id": ["anna"], "attributes": [["age=30"]]}, schema=polars_schema(USERS))
        quarantine = pl.DataFrame(schema=polars_schema(QUARANTINE))
        tables = {"events": events, "items": items, "users": users, "quarantine": quarantine}
        return write_dataset(home, name, **tables, source="a test")

    return write


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """RLIMIT_FSIZE: the one quota that needs no root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit < 0 else limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
