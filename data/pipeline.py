"""Features of a whole data set with Ray Data: one training example per event, as of that event.

Events go by buckets of whole items, then by buckets of whole users; inside a bucket `data.features` runs on polars.
The driver only sees what is small: per user the events that leave-one-out holds out, per late event when it arrived.
"""

import functools
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from data import features
from data.dataset import Dataset
from data.fingerprints import fingerprint
from data.schema import (
    ATTRIBUTES,
    COUNTED,
    EVENT_TIME,
    INGEST_TIME,
    ITEM_ATTRIBUTES,
    ITEM_ID,
    SEQUENCE,
    SOURCE_ROW,
    SPLIT,
    USER_ATTRIBUTES,
    USER_ID,
    VALUE,
)
from data.splits import LEAVE_ONE_OUT_PROTOCOL, TEST, TRAIN, assign_splits, protocol_hash, require_users

MANIFEST_FILE = "manifest.json"
HISTORY_LENGTH = 50
EVENTS_PER_BUCKET = 100_000
USER_BUCKET = "user_bucket"
ITEM_BUCKET = "item_bucket"

EVENT_COLUMNS = [SEQUENCE, EVENT_TIME, SOURCE_ROW, USER_ID, ITEM_ID, VALUE, SPLIT]
EXAMPLE_COLUMNS = [
    *EVENT_COLUMNS,
    *features.USER_WINDOW_COLUMNS,
    USER_ATTRIBUTES,
    *features.ITEM_FEATURE_COLUMNS,
    ITEM_ATTRIBUTES,
]
"""Columns of an example, in order."""


class FeatureManifest(BaseModel):
    """What a folder of examples was computed from, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    data_version: str
    history_length: int
    """Events of a user's history that an example carries at most."""
    fingerprints: dict[str, str]
    """Feature view → hash of its definition."""
    protocol: str
    protocol_hash: str
    examples: int
    seconds: float


@dataclass(frozen=True)
class _HeldOut:
    """What one example cannot find out in its bucket: its split, and how many events of all items it can see."""

    splits: pl.DataFrame
    """sequence, split of the events that do not train."""
    uncounted: np.ndarray[Any, np.dtype[np.int64]]
    """Sorted sequences of the events that do not count into item features."""
    late: np.ndarray[Any, np.dtype[np.int64]]
    """Sorted sequences of the counted events that were ingested after they happened."""
    late_ingested: np.ndarray[Any, np.dtype[np.int64]]
    """Sorted ingest times of those, µs since the epoch."""

    def counted_events(self, sequences: pl.Series, times: pl.Series) -> pl.Series:
        """Number of counted events visible to each example at (sequence, event_time)."""
        sequence = sequences.to_numpy()
        earlier = sequence - np.searchsorted(self.uncounted, sequence) - np.searchsorted(self.late, sequence)
        arrived = np.searchsorted(self.late_ingested, times.dt.epoch("us").to_numpy(), side="right")
        return pl.Series(features.COUNTED_EVENTS, earlier + arrived, dtype=pl.Int64)


Shared = tuple[_HeldOut, pl.DataFrame, pl.DataFrame]
"""What every bucket reads: held-out events, items, users."""


def examples_folder(home: Path, dataset: Dataset, history_length: int = HISTORY_LENGTH) -> Path:
    """Where the examples of this version of a data set and of these definitions of features belong."""
    if history_length < 1:
        raise TowerlineError(f"--history-length is {history_length}, expected 1 or more events")
    views = fingerprint(**features.feature_fingerprints(history_length), protocol=protocol_hash())
    return home / "features" / dataset.name / dataset.manifest.data_version[:12] / views


def ensure_examples(home: Path, dataset: Dataset, history_length: int = HISTORY_LENGTH) -> Path:
    """The folder of examples, built if it is not there yet. Needs a Ray session."""
    folder = examples_folder(home, dataset, history_length)
    return folder if has_examples(folder) else build_examples(dataset, folder, history_length)


def has_examples(folder: Path) -> bool:
    """Whether `folder` holds a complete set of examples."""
    return (folder / MANIFEST_FILE).exists()


def build_examples(
    dataset: Dataset, output: Path, history_length: int = HISTORY_LENGTH, buckets: int | None = None
) -> Path:
    """Compute one example per event (`EXAMPLE_COLUMNS`) and write them to `output`, complete or not at all.

    Only events that leave-one-out gives to training count into item features; a user's own history is all of it.
    Needs a Ray session. Raises TowerlineError when the split has too few users.
    """
    started = time.monotonic()
    # What goes wrong is raised here; Ray Data would print it as well, with a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    buckets = buckets or max(4, -(-dataset.manifest.events // EVENTS_PER_BUCKET))
    events = _read(dataset, buckets)
    held_out = _held_out(events)
    require_users(held_out.splits.filter(pl.col(SPLIT) == TEST).height, 2, dataset.manifest.users)
    with _complete_or_absent(output) as part:
        shared = ray.put((held_out, dataset.items(), dataset.users()))
        with_items = _by_bucket(events, ITEM_BUCKET, functools.partial(_item_bucket, shared=shared))
        write = functools.partial(_user_bucket, shared=shared, folder=part, history_length=history_length)
        written = sum(row["examples"] for row in _by_bucket(with_items, USER_BUCKET, write).take_all())
        if written != dataset.manifest.events:
            raise TowerlineError(
                f"data set {dataset.name!r} has {dataset.manifest.events} events by its manifest, {written} were read "
                f"from {dataset.path}; ingest it again"
            )
        manifest = FeatureManifest(
            dataset=dataset.name,
            data_version=dataset.manifest.data_version,
            history_length=history_length,
            fingerprints=features.feature_fingerprints(history_length),
            protocol=LEAVE_ONE_OUT_PROTOCOL,
            protocol_hash=protocol_hash(),
            examples=written,
            seconds=round(time.monotonic() - started, 3),
        )
        (part / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    return output


def read_examples(path: Path) -> pl.DataFrame:
    """All examples of a folder, sorted by sequence. Raises TowerlineError if the folder is not complete."""
    if not has_examples(path):
        raise TowerlineError(f"{path} holds no examples; make them with `python -m jobs.build_features --dataset NAME`")
    return pl.read_parquet(sorted(path.glob("*.parquet"))).sort(SEQUENCE)


def read_feature_manifest(path: Path) -> FeatureManifest:
    """The manifest of a folder of examples."""
    return FeatureManifest.model_validate_json((path / MANIFEST_FILE).read_text())


def examples_of(
    events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame, history_length: int = HISTORY_LENGTH
) -> pl.DataFrame:
    """The same examples computed on whole tables in this process: for small data, and to check the pipeline by."""
    ordered = features.with_sequence(assign_splits(events)).with_columns(_is_counted())
    timeline, counted = features.item_aggregates(ordered), features.counted_timeline(ordered)
    windows = features.user_windows(features.item_features_at(timeline, counted, ordered), history_length)
    return _with_attributes(windows, items, users).select(EXAMPLE_COLUMNS).sort(SEQUENCE)


def _read(dataset: Dataset, buckets: int) -> ray.data.Dataset:
    """The events, numbered in the total order: position is `sequence`."""
    columns = [SEQUENCE, EVENT_TIME, INGEST_TIME, SOURCE_ROW, USER_ID, ITEM_ID, VALUE, USER_BUCKET, ITEM_BUCKET]
    numbered = (
        dataset.events()
        .with_row_index(SEQUENCE)
        .with_columns(pl.col(SEQUENCE).cast(pl.Int64), _bucket(USER_ID, buckets), _bucket(ITEM_ID, buckets))
    )
    return ray.data.from_arrow([part.to_arrow() for part in numbered.select(columns).iter_slices(65_536)])


def _bucket(entity: str, buckets: int) -> pl.Expr:
    name = USER_BUCKET if entity == USER_ID else ITEM_BUCKET
    return (pl.col(entity).hash(seed=0) % buckets).cast(pl.Int64).alias(name)


def _by_bucket(
    dataset: ray.data.Dataset, bucket: str, transform: Callable[[pl.DataFrame], pl.DataFrame]
) -> ray.data.Dataset:
    return dataset.groupby(bucket).map_groups(_on_polars(transform), batch_format="pyarrow")


def _on_polars(transform: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[pa.Table], pa.Table]:
    def on_arrow(table: pa.Table) -> pa.Table:
        return transform(pl.DataFrame(table)).to_arrow()

    return on_arrow


def _held_out(events: ray.data.Dataset) -> _HeldOut:
    narrow = events.select_columns([SEQUENCE, USER_ID, EVENT_TIME, INGEST_TIME, SOURCE_ROW, USER_BUCKET])
    tables = ray.get(_by_bucket(narrow, USER_BUCKET, _exceptions).to_arrow_refs())
    rows = pl.concat([pl.DataFrame(table) for table in tables if table.num_rows] or [_NO_EXCEPTIONS]).sort(SEQUENCE)
    held_out = rows.filter(pl.col(SPLIT) != TRAIN)
    late = rows.filter(pl.col(SPLIT) == TRAIN)
    return _HeldOut(
        splits=held_out.select(SEQUENCE, SPLIT),
        uncounted=held_out.get_column(SEQUENCE).to_numpy(),
        late=late.get_column(SEQUENCE).to_numpy(),
        late_ingested=late.get_column(INGEST_TIME).dt.epoch("us").sort().to_numpy(),
    )


_NO_EXCEPTIONS = pl.DataFrame(schema={SEQUENCE: pl.Int64, SPLIT: pl.String, INGEST_TIME: features.TIME})


def _exceptions(users: pl.DataFrame) -> pl.DataFrame:
    """Of a bucket of users: the events that do not train, and those that were ingested late."""
    unusual = (pl.col(SPLIT) != TRAIN) | (pl.col(INGEST_TIME) > pl.col(EVENT_TIME))
    return assign_splits(users).filter(unusual).select(SEQUENCE, SPLIT, INGEST_TIME)


def _item_bucket(events: pl.DataFrame, shared: ray.ObjectRef[Shared]) -> pl.DataFrame:
    """Split and item features of the events of some items."""
    held_out, _, _ = ray.get(shared)
    ordered = events.join(held_out.splits, on=SEQUENCE, how="left").with_columns(pl.col(SPLIT).fill_null(TRAIN))
    visible = features.with_visibility(ordered.sort(SEQUENCE)).with_columns(_is_counted())
    state = features.item_state_at(features.item_aggregates(visible), visible)
    counted = held_out.counted_events(state.get_column(SEQUENCE), state.get_column(EVENT_TIME))
    return features.finish_item_features(state.with_columns(counted))


def _user_bucket(
    events: pl.DataFrame, shared: ray.ObjectRef[Shared], folder: Path, history_length: int
) -> pl.DataFrame:
    """Write the finished examples of some users; gives their number."""
    _, items, users = ray.get(shared)
    windows = features.user_windows(features.with_visibility(events.sort(SEQUENCE)), history_length)
    examples = _with_attributes(windows, items, users).select(EXAMPLE_COLUMNS)
    file = folder / f"examples-{events.item(0, USER_BUCKET):05d}.parquet"
    examples.write_parquet(file)
    return pl.DataFrame({"examples": [examples.height]})


def _is_counted() -> pl.Expr:
    return (pl.col(SPLIT) == TRAIN).alias(COUNTED)


def _with_attributes(events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    nothing = pl.lit([], dtype=pl.List(pl.String))
    of_users = users.select(USER_ID, pl.col(ATTRIBUTES).alias(USER_ATTRIBUTES))
    of_items = items.select(ITEM_ID, pl.col(ATTRIBUTES).alias(ITEM_ATTRIBUTES))
    joined = events.join(of_users, on=USER_ID, how="left").join(of_items, on=ITEM_ID, how="left")
    return joined.with_columns(
        pl.col(USER_ATTRIBUTES).fill_null(nothing),
        pl.col(ITEM_ATTRIBUTES).fill_null(nothing),
    )


@contextmanager
def _complete_or_absent(output: Path) -> Iterator[Path]:
    part = output.with_name(f".{output.name}.part-{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        yield part
        if output.exists():
            output.rename(part / "replaced")
        part.rename(output)
        shutil.rmtree(output / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
