"""The point-in-time join at any size: features of entities as of the moments of a table of examples.

    examples ─► a slice for every bucket of the entity ─► bucket of its events ─► examples with features

Both steps are maps over files with Ray Data; rows never pass through the driver. A task takes the memory of one bucket
of events and of half a million examples.
"""

import functools
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from data.buckets import bucket_numbers
from data.dataset import Dataset
from data.disk import clear_disk_errors
from data.examples import columns_needed, features_in
from data.features import NEVER, TIME
from data.offline_store import write_frame
from data.parallel import Run, on_ray
from data.point_in_time import features_of
from data.schema import EVENT_TIME, SOURCE_ROW, SPLIT
from data.slices import read_slices, write_slices
from data.views import Entity, FeatureView, views_of

EXAMPLES_AT_ONCE = 500_000
"""Read, and joined, so many at a time."""


def join_features(
    dataset: Dataset, views: Sequence[FeatureView], examples: Sequence[Path], output: Path, run: Run = on_ray
) -> Path:
    """Write the folder `output`: the examples with the features of the views, in Parquet files, in any order.

    `examples`: Parquet files with the ids of the views' entities, `event_time`, and what else there is. An example sees
    all events up to its `event_time` that were known by then; with a column `source_row` only those before it in
    (event_time, source_row). Views may be of users, of items or of both.

    Raises TowerlineError for a column that is missing, views of everything, an `output` that exists, or a full disk.
    """
    _require(views, examples, output)
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    files = list(examples)
    try:
        with clear_disk_errors(f"writing {output}"):
            for entity in dict.fromkeys(view.entity for view in views):
                folder = part / entity.name
                files = _joined(dataset, views_of(entity, tuple(views)), files, folder, run)
            shutil.rmtree(folder / "slices")
            folder.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return output


Group = tuple[int, Path, int]
"""Number of a row group among all, its file, and its number there."""


def _joined(
    dataset: Dataset, views: tuple[FeatureView, ...], examples: Sequence[Path], folder: Path, run: Run
) -> list[Path]:
    """Examples by bucket of an entity, then joined bucket by bucket; gives the files written."""
    counts = [(file, pq.read_metadata(file).num_row_groups) for file in examples]
    places = [(file, group) for file, count in counts for group in range(count)]
    groups = [(number, file, group) for number, (file, group) in enumerate(places)]
    buckets = dataset.manifest.buckets
    slices = sorted(run(functools.partial(_split, views[0].entity, buckets, folder), groups))
    join = functools.partial(_join, dataset, views, slices, folder)
    return sorted(file for files in run(join, range(buckets)) for file in files)


def _split(entity: Entity, buckets: int, folder: Path, group: Group) -> Path:
    """A row group of examples, by the bucket of their entity."""
    number, file, place = group
    with pq.ParquetFile(file) as parquet:
        rows = pl.DataFrame(parquet.read_row_group(place))
    slices = folder / "slices" / f"{number:05d}.arrow"
    write_slices(slices, [(bucket_numbers(rows.get_column(_key(entity)), buckets), rows)], buckets)
    return slices


def _join(
    dataset: Dataset, views: tuple[FeatureView, ...], slices: list[Path], folder: Path, bucket: int
) -> list[Path]:
    """The examples of a bucket with their features."""
    examples = read_slices(slices, bucket, dataset.manifest.buckets) if slices else pl.DataFrame()
    if examples.is_empty():
        return []
    columns = [name for name in columns_needed(views) if name != SPLIT]
    events = dataset.bucket(views[0].entity, bucket, columns)
    added = [] if SOURCE_ROW in examples.columns else [pl.lit(NEVER, dtype=pl.Int64).alias(SOURCE_ROW)]
    files = []
    for number, some in enumerate(examples.iter_slices(EXAMPLES_AT_ONCE)):
        keys = some.with_columns(pl.col(EVENT_TIME).cast(TIME), *added)
        files.append(folder / f"bucket-{bucket:05d}-{number:03d}.parquet")
        write_frame(features_of(views, events, keys).select([*some.columns, *features_in(views)]), files[-1])
    return files


def _require(views: Sequence[FeatureView], examples: Sequence[Path], output: Path) -> None:
    if output.exists():
        raise TowerlineError(f"{output} is there already; remove it or name another folder")
    columns = {EVENT_TIME, *(_key(view.entity) for view in views)}
    for file in examples:
        if missing := columns - set(pq.read_schema(file).names):
            raise TowerlineError(f"{file} has no column {min(missing)!r}, which examples need")


def _key(entity: Entity) -> str:
    if entity.key is None:
        raise TowerlineError(f"views of {entity.name} cannot be joined by bucket; use data.point_in_time.features_of")
    return entity.key
