"""The point-in-time join at any size: features of entities as of the moments of a table of examples.

    examples ─► a slice for every bucket of the entity ─► bucket of its events ─► examples with features

Both steps are maps over files with Ray Data; rows never pass through the driver. A task takes the memory of one bucket
of events and of half a million examples, however many examples there are of one bucket.
"""

import functools
import itertools
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from data.buckets import bucket_numbers
from data.dataset import Dataset
from data.disk import clear_disk_errors
from data.features import NEVER, TIME
from data.offline.examples import columns_needed, features_in
from data.offline.slices import each_slice, write_slices
from data.offline.store import write_frame
from data.parallel import Run, on_ray
from data.schema import EVENT_TIME, SOURCE_ROW, SPLIT
from data.temporal.point_in_time import features_of
from data.views import Entity, FeatureView, views_of

EXAMPLES_AT_ONCE = 500_000
"""Read, and joined, so many at a time."""


def join_features(
    dataset: Dataset, views: Sequence[FeatureView], examples: Sequence[Path], output: Path, run: Run = on_ray
) -> Path:
    """Write the folder `output`: the examples with the features of the views, in Parquet files, in any order.

    `examples`: Parquet files with the same columns: the ids of the views' entities, `event_time` (a timestamp with a
    time zone), and what else there is. An example sees all events up to its `event_time` that were known by then; with
    a column `source_row` only those before it in (event_time, source_row). Views may be of users, of items or of both.
    No examples give one file without rows.

    Raises TowerlineError for a column that is missing, of a wrong type, null or called like a feature, for files of
    different columns, views of everything, an `output` that exists, or a full disk.
    """
    schema = _require(views, examples, output)
    needed = [EVENT_TIME, *(_key(view.entity) for view in views), *({SOURCE_ROW} & set(schema))]
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    files = list(examples)
    try:
        with clear_disk_errors(f"writing {output}"):
            for entity in dict.fromkeys(view.entity for view in views):
                folder = part / entity.name
                mine = views_of(entity, tuple(views))
                files = _joined(dataset, mine, _Examples(files, list(schema), needed), folder, run)
                schema |= {name: kind for view in mine for name, kind in view.schema().items()}
            if not files:
                write_frame(pl.DataFrame(schema=schema), folder / "bucket-00000-000.parquet")
            shutil.rmtree(folder / _SLICES, ignore_errors=True)
            folder.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return output


Group = tuple[int, Path, int]
"""Number of a row group among all, its file, and its number there."""
_SLICES = "slices"


@dataclass(frozen=True)
class _Examples:
    files: list[Path]
    columns: list[str]
    """In the order in which they are written."""
    needed: list[str]
    """Columns without nulls."""


def _joined(
    dataset: Dataset, views: tuple[FeatureView, ...], examples: _Examples, folder: Path, run: Run
) -> list[Path]:
    """Examples by bucket of an entity, then joined bucket by bucket; gives the files written."""
    counts = [(file, pq.read_metadata(file).num_row_groups) for file in examples.files]
    places = [(file, group) for file, count in counts for group in range(count)]
    groups = [(number, file, group) for number, (file, group) in enumerate(places)]
    buckets = dataset.manifest.buckets
    split = functools.partial(_split, views[0].entity, examples, buckets, folder)
    slices = sorted(file for files in run(split, groups) for file in files)
    join = functools.partial(_join, dataset, views, slices, folder)
    return sorted(file for files in run(join, range(buckets)) for file in files)


def _split(entity: Entity, examples: _Examples, buckets: int, folder: Path, group: Group) -> list[Path]:
    """A row group of examples, by the bucket of their entity."""
    number, file, place = group
    files = []
    with pq.ParquetFile(file) as parquet:
        for part, batch in enumerate(parquet.iter_batches(EXAMPLES_AT_ONCE, row_groups=[place])):
            rows = pl.DataFrame(pa.Table.from_batches([batch])).select(examples.columns)
            _require_no_nulls(rows.select(examples.needed), file)
            files.append(folder / _SLICES / f"{number:05d}-{part:03d}.arrow")
            write_slices(files[-1], [(bucket_numbers(rows.get_column(_key(entity)), buckets), rows)], buckets)
    return files


def _join(
    dataset: Dataset, views: tuple[FeatureView, ...], slices: list[Path], folder: Path, bucket: int
) -> list[Path]:
    """The examples of a bucket with their features."""
    pieces = _gathered(each_slice(slices, bucket, dataset.manifest.buckets))
    first = next(pieces, None)
    if first is None:
        return []
    columns = [name for name in columns_needed(views) if name != SPLIT]
    events = dataset.bucket(views[0].entity, bucket, columns)
    added = [] if SOURCE_ROW in first.columns else [pl.lit(NEVER).alias(SOURCE_ROW)]
    files = []
    for number, some in enumerate(itertools.chain([first], pieces)):
        keys = some.with_columns(*added).with_columns(pl.col(EVENT_TIME).cast(TIME), pl.col(SOURCE_ROW).cast(pl.Int64))
        features = features_of(views, events, keys).select(features_in(views))
        files.append(folder / f"bucket-{bucket:05d}-{number:03d}.parquet")
        write_frame(some.hstack(features), files[-1])
    return files


def _gathered(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The rows of all frames, at most `EXAMPLES_AT_ONCE` at a time."""
    kept: list[pl.DataFrame] = []
    for frame in frames:
        for rows in frame.iter_slices(EXAMPLES_AT_ONCE):
            if kept and sum(each.height for each in kept) + rows.height > EXAMPLES_AT_ONCE:
                yield pl.concat(kept)
                kept = []
            kept.append(rows)
    if kept:
        yield pl.concat(kept)


def _require(views: Sequence[FeatureView], examples: Sequence[Path], output: Path) -> dict[str, pl.DataType]:
    """The columns of the examples and their types, if these can be joined."""
    if output.exists():
        raise TowerlineError(f"{output} is there already; remove it or name another folder")
    if not views or not examples:
        raise TowerlineError(f"{output}: there are no {'files of examples' if views else 'views'} to join")
    names = features_in(views)
    if twice := {name for name in names if names.count(name) > 1}:
        raise TowerlineError(f"two views have a feature {min(twice)!r}; give one of them another name")
    keys = [_key(view.entity) for view in views]
    schemas = [_schema(file, keys) for file in examples]
    for file, schema in zip(examples, schemas, strict=True):
        if differing := dict(schema.items() ^ schemas[0].items()):
            raise TowerlineError(
                f"{file}: column {min(differing)!r} is not as in {examples[0]}; give files of the same columns"
            )
        if same := set(names) & set(schema):
            raise TowerlineError(f"{file}: column {min(same)!r} is called like a feature of the views; rename it")
    return schemas[0]


def _schema(file: Path, keys: Iterable[str]) -> dict[str, pl.DataType]:
    """The columns of a file of examples, if the join can read them."""
    try:
        schema = dict(pl.DataFrame(pq.read_schema(file).empty_table()).schema)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise TowerlineError(f"{file} is no Parquet file ({error}); write the examples as Parquet") from error
    for name in (EVENT_TIME, *keys):
        if name not in schema:
            raise TowerlineError(f"{file} has no column {name!r}, which examples need")
    for name in keys:
        if schema[name] != pl.String:
            raise TowerlineError(f"{file}: column {name!r} is {schema[name]}, expected strings; cast it")
    kind = schema[EVENT_TIME]
    if not isinstance(kind, pl.Datetime) or kind.time_zone is None:
        raise TowerlineError(
            f"{file}: column {EVENT_TIME!r} is {kind}, expected a timestamp with a time zone; convert it, e.g. seconds "
            "with pl.from_epoch(column, 's'), and moments of no zone with .dt.replace_time_zone('UTC')"
        )
    if SOURCE_ROW in schema and not schema[SOURCE_ROW].is_integer():
        raise TowerlineError(f"{file}: column {SOURCE_ROW!r} is {schema[SOURCE_ROW]}, expected integers; leave it out")
    return schema


def _require_no_nulls(rows: pl.DataFrame, file: Path) -> None:
    for name in rows.columns:
        if count := rows.get_column(name).null_count():
            raise TowerlineError(f"{file}: {count} examples have no {name}; drop them")


def _key(entity: Entity) -> str:
    if entity.key is None:
        raise TowerlineError(
            f"views of {entity.name} cannot be joined by bucket; use data.temporal.point_in_time.features_of"
        )
    return entity.key
