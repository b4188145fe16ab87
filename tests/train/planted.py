"""A data set in which something is to be learnt: items in groups, users who walk through one group step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.dataset import Dataset, write_dataset
from data.events import with_event_ids
from data.offline.pipeline import build_examples, examples_folder
from data.parallel import in_process
from data.quality.validation import polars_schema
from data.schema import EVENTS, ITEMS, QUARANTINE, USERS
from train.loop import TrainingTask

GROUPS, GROUP_SIZE, USERS_PER_GROUP = 3, 20, 80
HISTORY = 12
START = datetime(2024, 1, 1, tzinfo=UTC)
NEVER_CHOSEN = ("new/one of 群 0", "new 'two' of 群 0")
"""Two items without events and with the same attributes."""


@dataclass(frozen=True)
class Planted:
    """The data set on disk with its examples."""

    home: Path
    dataset: Dataset
    folder: Path
    """Of the examples, as `data.offline.pipeline.build_examples` leaves it."""


def item_id(group: int, place: int) -> str:
    """Ids with all that ids may hold."""
    return f'群 {group}/{place % GROUP_SIZE} "it\'s"'


def plant(home: Path, name: str = "planted", seed: int = 0) -> Planted:
    """Write the data set and its examples."""
    dataset = write_dataset(
        home,
        name,
        events=planted_events(seed),
        items=planted_items(),
        users=planted_users(),
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )
    return Planted(home, dataset, build_here(home, dataset))


def build_here(home: Path, dataset: Dataset) -> Path:
    """The folder of the examples, built in this process."""
    return build_examples(dataset, examples_folder(home, dataset, HISTORY), HISTORY, run=in_process)


def planted_events(seed: int) -> pl.DataFrame:
    """Each user takes 6 to 11 items of one group, mostly the one after the last; users begin at different times."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(GROUPS * USERS_PER_GROUP):
        group, place = user % GROUPS, int(random.integers(GROUP_SIZE))
        moment = START + timedelta(hours=int(random.integers(24 * 60)))
        for _ in range(int(random.integers(6, 12))):
            rows.append((f"user {user}", item_id(group, place), "view", float(random.integers(1, 6)), moment))
            place += 1 if random.random() < 0.8 else 2
            moment += timedelta(minutes=int(random.integers(1, 5000)))
    return events_of(rows)


def events_of(rows: list[tuple[str, str, str, float, datetime]]) -> pl.DataFrame:
    """Events (user, item, type, value, time), known as soon as they happen."""
    columns = ["user_id", "item_id", "event_type", "value", "event_time"]
    kinds = {name: kind for name, kind in polars_schema(EVENTS).items() if name in columns}
    events = pl.DataFrame(rows, schema=kinds, orient="row").with_columns(
        pl.col("event_time").alias("ingest_time"),
        pl.lit(None, dtype=pl.String).alias("decision_id"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("source_row"),
    )
    return with_event_ids(events).select(EVENTS.names)


def planted_items() -> pl.DataFrame:
    """All items but one, which only events name, and two that no event names."""
    places = [(group, place) for group in range(GROUPS) for place in range(GROUP_SIZE)][:-1]
    return pl.DataFrame(
        {
            "item_id": [*(item_id(group, place) for group, place in places), *NEVER_CHOSEN],
            "title": [None, *(f"Item {place} of {group}" for group, place in places[1:]), "One", "Two"],
            "attributes": [*([f"group={group}", f"odd={place % 2}"] for group, place in places), *[["group=0"]] * 2],
        },
        schema=polars_schema(ITEMS),
    )


def planted_users() -> pl.DataFrame:
    """Every second user, with an attribute that says nothing."""
    numbers = range(0, GROUPS * USERS_PER_GROUP, 2)
    return pl.DataFrame(
        {"user_id": [f"user {number}" for number in numbers], "attributes": [[f"age={n % 7}"] for n in numbers]},
        schema=polars_schema(USERS),
    )


def batches(task: TrainingTask, epoch: int, rank: int = 0, size: int = 1) -> Iterator[Any]:
    """What a rank trains on in an epoch."""
    return (task.batch(share) for share in task.order.shares(epoch, rank, size))
