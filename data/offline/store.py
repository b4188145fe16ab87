"""Training examples on disk: Parquet by date, in snapshots that are complete or not there.

    $TOWERLINE_HOME/features/<dataset>/<definitions>/<data version>/
        manifest.json, users.parquet, items.parquet    what the examples are, and the attributes they refer to
        date=2024-01-01/bucket-00000.parquet …         one row per event, sorted by (user, time, row)

A snapshot belongs to a version of the data and to the fingerprint of the definitions. Changed definitions make a
snapshot beside the old one, which stays readable. Of each definition the snapshots of the last two versions of the
data are kept.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import TowerlineError
from data.schema import (
    ATTRIBUTES,
    EVENT_TIME,
    ITEM_ATTRIBUTES,
    ITEM_ID,
    SEQUENCE,
    USER_ATTRIBUTES,
    USER_ID,
)
from data.splits import TOTAL_ORDER

MANIFEST_FILE = "manifest.json"
USERS_FILE = "users.parquet"
ITEMS_FILE = "items.parquet"
PARTITION = "date"
DAILY_UP_TO = timedelta(days=31)
"""A longer span is partitioned by month."""
SNAPSHOTS_KEPT = 2
PART = ".part"
"""Ends the name of a file that is being written."""
ROWS_PER_GROUP = 65_536

Partitioning = Literal["day", "month"]

_ATTRIBUTES_OF = {USER_ATTRIBUTES: (USER_ID, USERS_FILE), ITEM_ATTRIBUTES: (ITEM_ID, ITEMS_FILE)}
ADDED_WHEN_READ = (SEQUENCE, *_ATTRIBUTES_OF)
"""Columns of an example that are not stored with it."""


class FeatureManifest(BaseModel):
    """What a snapshot was computed from, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    data_version: str
    history_length: int
    """Events of a user's history that an example carries at most."""
    columns: list[str]
    """Of an example, in order."""
    definitions: list[dict[str, Any]]
    """Every feature view as it was declared."""
    fingerprints: dict[str, str]
    """Feature view → hash of its definition and of what computes it."""
    protocol: str
    protocol_hash: str
    examples: int
    partitioning: Partitioning
    partitions: dict[str, int]
    """Date → its examples, by date."""
    created: datetime
    seconds: float
    """Time that the last run took: a run that went on where another had stopped had less to do."""


class Snapshot(BaseModel):
    """A snapshot that is on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    manifest: FeatureManifest


def definitions_fingerprint(fingerprints: Mapping[str, str], protocol_hash: str) -> str:
    """What the folder of a definition is called: a hash of all views and of the protocol."""
    return hashlib.sha256(json.dumps([dict(fingerprints), protocol_hash], sort_keys=True).encode()).hexdigest()[:16]


def has_examples(folder: Path) -> bool:
    """Whether `folder` holds a complete snapshot."""
    return (folder / MANIFEST_FILE).exists()


def read_feature_manifest(folder: Path) -> FeatureManifest:
    """The manifest of a snapshot. Raises TowerlineError if there is none, or one of another version of this code."""
    if not has_examples(folder):
        raise TowerlineError(
            f"{folder} holds no examples; make them with `python -m jobs.build_features --dataset NAME`"
        )
    try:
        return FeatureManifest.model_validate_json((folder / MANIFEST_FILE).read_text())
    except ValidationError as error:
        raise TowerlineError(
            f"{folder / MANIFEST_FILE} is no manifest of examples ({error.error_count()} fields differ); remove "
            f"{folder} and build it again"
        ) from error


def list_snapshots(home: Path, dataset: str) -> list[Snapshot]:
    """All snapshots of a data set, the newest last."""
    folders = [path.parent for path in (home / "features" / dataset).glob(f"[!.]*/[!.]*/{MANIFEST_FILE}")]
    found = [Snapshot(path=folder, manifest=read_feature_manifest(folder)) for folder in folders]
    return sorted(found, key=lambda snapshot: (snapshot.manifest.created, snapshot.path))


def read_examples(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """The examples of a snapshot in the total order, all or those with since <= event_time < until.

    Only the partitions and columns that are asked for are read. `sequence` is the rank among all examples of the
    snapshot. Raises TowerlineError if the snapshot is not complete or has no such column.
    """
    manifest = read_feature_manifest(path)
    wanted = list(manifest.columns if columns is None else columns)
    if unknown := [name for name in wanted if name not in manifest.columns]:
        raise TowerlineError(
            f"the examples in {path} have no column {unknown[0]!r} (there are: {', '.join(manifest.columns)})"
        )
    rows = _read_rows(path, manifest, _stored(wanted), since, until)
    for name in _ATTRIBUTES_OF:
        if name in wanted:
            rows = _with_attributes(rows, path, name)
    return rows.select(wanted)


def partitioning_of(first: datetime, last: datetime) -> Partitioning:
    """By day, or by month for data that spans more than a month."""
    return "day" if last - first <= DAILY_UP_TO else "month"


def split_by_date(examples: pl.DataFrame, partitioning: Partitioning) -> dict[str, pl.DataFrame]:
    """The examples of each partition, in their order."""
    date = pl.col(EVENT_TIME).dt.date()
    named = examples.with_columns((date if partitioning == "day" else date.dt.month_start()).alias(PARTITION))
    parts = named.partition_by(PARTITION, as_dict=True, include_key=False)
    return {str(key[0]): part for key, part in sorted(parts.items())}


def write_bucket(folder: Path, name: str, parts: Mapping[str, pl.DataFrame]) -> list[Path]:
    """Write `date=…/<name>.parquet` of every part; the same rows give the same bytes."""
    files = []
    for date, examples in parts.items():
        files.append(folder / f"{PARTITION}={date}" / f"{name}.parquet")
        write_frame(examples, files[-1])
    return files


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write Parquet that a reader sees whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        frame.write_parquet(part, compression="zstd", compression_level=1, row_group_size=ROWS_PER_GROUP)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_attributes(folder: Path, users: pl.DataFrame, items: pl.DataFrame) -> None:
    """Keep the attributes that examples refer to beside them."""
    write_frame(users.select(USER_ID, ATTRIBUTES), folder / USERS_FILE)
    write_frame(items.select(ITEM_ID, ATTRIBUTES), folder / ITEMS_FILE)


def remove_old_snapshots(definition: Path) -> None:
    """Keep the newest snapshots of a definition; other definitions are not touched."""
    manifests = list(definition.glob(f"[!.]*/{MANIFEST_FILE}"))
    by_age = sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path))
    for manifest in by_age[:-SNAPSHOTS_KEPT]:
        manifest.unlink(missing_ok=True)
        shutil.rmtree(manifest.parent, ignore_errors=True)


def _stored(wanted: Iterable[str]) -> list[str]:
    """The columns of rows that those that are wanted are made from."""
    ids = [key for name, (key, _) in _ATTRIBUTES_OF.items() if name in wanted]
    names = [*TOTAL_ORDER, *ids, *(name for name in wanted if name not in _ATTRIBUTES_OF)]
    return list(dict.fromkeys(names))


def _read_rows(
    path: Path, manifest: FeatureManifest, columns: list[str], since: datetime | None, until: datetime | None
) -> pl.DataFrame:
    """Columns of the chosen rows, in the total order."""
    dates = [date for date in manifest.partitions if _may_hold(date, manifest.partitioning, since, until)]
    folders = dates or list(manifest.partitions)[:1]
    files = [file for date in folders for file in sorted((path / f"{PARTITION}={date}").glob("[!.]*.parquet"))]
    chosen = pl.lit(bool(dates))
    chosen = chosen if since is None else chosen & (pl.col(EVENT_TIME) >= since)
    chosen = chosen if until is None else chosen & (pl.col(EVENT_TIME) < until)
    rows = pl.scan_parquet(files, hive_partitioning=False)
    if SEQUENCE not in columns:
        return rows.filter(chosen).select(columns).collect().sort(TOTAL_ORDER)
    before = sum(count for date, count in manifest.partitions.items() if date < folders[0])
    stored = rows.select(name for name in columns if name != SEQUENCE).collect().sort(TOTAL_ORDER)
    ranked = stored.with_columns((pl.int_range(pl.len(), dtype=pl.Int64) + before).alias(SEQUENCE))
    return ranked.filter(chosen)


def _may_hold(date: str, partitioning: Partitioning, since: datetime | None, until: datetime | None) -> bool:
    """Whether a partition overlaps with since <= event_time < until."""
    first, last = (None if each is None else _date_of(each, partitioning) for each in (since, until))
    return (first is None or date >= first) and (last is None or date <= last)


def _date_of(moment: datetime, partitioning: Partitioning) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}" if partitioning == "day" else f"{moment.astimezone(UTC):%Y-%m}-01"


def _with_attributes(rows: pl.DataFrame, path: Path, name: str) -> pl.DataFrame:
    """Add the attributes of users or of items; whoever has none has an empty list."""
    key, file = _ATTRIBUTES_OF[name]
    attributes = pl.read_parquet(path / file).rename({ATTRIBUTES: name})
    joined = rows.join(attributes, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String))))
