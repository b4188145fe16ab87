"""A data set on disk: events, items and users in Parquet under one version, replaced as a whole or not at all.

    $TOWERLINE_HOME/datasets/<name>/current -> <version folder>   manifest.json, events.parquet, items.parquet,
                                                                  users.parquet, quarantine.parquet

A new version is written beside the old one and `current` is switched when it is complete, so that a reader sees
either. The version replaced last is kept, for whoever is reading it; older ones are removed.
"""

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from data.disk import clear_disk_errors
from data.schema import EVENT_TIME, EVENTS, ITEMS, QUARANTINE, USERS
from data.splits import TOTAL_ORDER

EVENTS_FILE = "events.parquet"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
QUARANTINE_FILE = "quarantine.parquet"
MANIFEST_FILE = "manifest.json"
CURRENT = "current"
ROWS_PER_GROUP = 65_536

INGEST_TIME_IS_EVENT_TIME = "ingest_time = event_time (backfill: history was known when it happened)"
"""The rule for a source that does not say when the system learnt of an event."""

NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class DatasetManifest(BaseModel):
    """What a version of a data set holds and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data_version: str
    """SHA-256 over the content of the events, items and users: the same rows give the same version."""
    events: int
    users: int
    """Distinct users with events."""
    items: int
    """Items of the catalogue and items that have events only."""
    quarantined: int
    first_event_time: datetime
    last_event_time: datetime
    ingest_time_rule: str
    source: str
    """What was read, for people."""


@dataclass(frozen=True)
class Dataset:
    """A version of a data set on disk. Tables are read when asked for."""

    name: str
    path: Path
    """Folder of this version: stays valid while a newer one is written."""
    manifest: DatasetManifest

    def events(self) -> pl.DataFrame:
        """Columns of `data.schema.EVENTS`, in the total order (event_time, source_row)."""
        return pl.read_parquet(self.path / EVENTS_FILE)

    def items(self) -> pl.DataFrame:
        """Columns of `data.schema.ITEMS`. An item that has only events has a row with null title."""
        return pl.read_parquet(self.path / ITEMS_FILE)

    def users(self) -> pl.DataFrame:
        """Columns of `data.schema.USERS`; users without a row there have no attributes."""
        return pl.read_parquet(self.path / USERS_FILE)

    def quarantine(self) -> pl.DataFrame:
        """Rows that were refused: table, line, reason, row (JSON)."""
        return pl.read_parquet(self.path / QUARANTINE_FILE)


def open_dataset(home: Path, name: str) -> Dataset:
    """The current version of data set `name`. Raises TowerlineError, naming those there are, if it does not exist."""
    current = _folder(home, name) / CURRENT
    if not current.exists():
        known = ", ".join(list_datasets(home)) or "none"
        raise TowerlineError(
            f"data set {name!r} does not exist in {home / 'datasets'} (there are: {known}); make it with "
            f"`python -m jobs.ingest_events --dataset {name}`, and --events FILE if the events are your own"
        )
    path = current.resolve()
    manifest = DatasetManifest.model_validate_json((path / MANIFEST_FILE).read_text())
    return Dataset(name, path, manifest)


def list_datasets(home: Path) -> list[str]:
    """Names of the data sets in `home`, sorted."""
    return sorted(path.parent.name for path in (home / "datasets").glob(f"*/{CURRENT}"))


def write_dataset(
    home: Path,
    name: str,
    *,
    events: pl.DataFrame,
    items: pl.DataFrame,
    users: pl.DataFrame,
    quarantine: pl.DataFrame,
    source: str,
    ingest_time_rule: str = INGEST_TIME_IS_EVENT_TIME,
) -> Dataset:
    """Write a new version of data set `name` and make it current; on any failure nothing of it stays.

    Raises TowerlineError when the disk is full, the name cannot be a folder, or there are no events.
    """
    folder = _folder(home, name)
    if events.is_empty():
        raise TowerlineError(f"data set {name!r}: {source} gave no events; nothing was written")
    tables = {
        EVENTS_FILE: to_contract(events.sort(TOTAL_ORDER), EVENTS),
        ITEMS_FILE: to_contract(items, ITEMS),
        USERS_FILE: to_contract(users, USERS),
        QUARANTINE_FILE: to_contract(quarantine, QUARANTINE),
    }
    manifest = DatasetManifest(
        name=name,
        data_version=content_version([tables[EVENTS_FILE], tables[ITEMS_FILE], tables[USERS_FILE]]),
        events=events.height,
        users=events.get_column("user_id").n_unique(),
        items=pl.concat([events.get_column("item_id"), items.get_column("item_id")]).n_unique(),
        quarantined=quarantine.height,
        first_event_time=events.get_column(EVENT_TIME).min(),
        last_event_time=events.get_column(EVENT_TIME).max(),
        ingest_time_rule=ingest_time_rule,
        source=source,
    )
    with clear_disk_errors(f"writing data set {name!r} to {folder}"), _new_version(folder, manifest) as path:
        for file, table in tables.items():
            pq.write_table(
                table, path / file, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=True
            )
        (path / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    return open_dataset(home, name)


def to_contract(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame's columns of `schema`, in its types. Raises on a null where the contract has none."""
    table = frame.select(schema.names).to_arrow().cast(schema)
    return table.combine_chunks()


def content_version(tables: list[pa.Table]) -> str:
    """SHA-256 over names, types and values: independent of file format, chunking and compression."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.num_rows} rows".encode())
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            digest.update(f"{name}: {column.type}".encode())
            for part in _canonical_bytes(column):
                digest.update(part)
    return digest.hexdigest()


def _canonical_bytes(column: pa.Array) -> Iterator[bytes]:
    if pa.types.is_list(column.type):
        yield np.asarray(pc.list_value_length(column)).tobytes()
        yield from _canonical_bytes(pc.list_flatten(column))
    elif pa.types.is_string(column.type):
        yield np.asarray(pc.fill_null(pc.binary_length(column), -1)).tobytes()
        yield "".join(pc.drop_null(column).to_pylist()).encode()
    elif pa.types.is_timestamp(column.type):
        yield np.asarray(column.cast(pa.int64())).tobytes()
    else:
        yield np.asarray(column).tobytes()


def _folder(home: Path, name: str) -> Path:
    if not NAME_RULE.fullmatch(name):
        raise TowerlineError(
            f"--dataset {name!r} cannot be a folder name; use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return home / "datasets" / name


@contextmanager
def _new_version(folder: Path, manifest: DatasetManifest) -> Iterator[Path]:
    """A temporary folder that becomes the current version when the block ends well and is removed when it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".part-{uuid.uuid4().hex}"
    part.mkdir()
    try:
        with _locked(part):
            _remove_abandoned(folder)
            yield part
            for file in part.iterdir():
                _sync(file)
            with _locked(folder):
                _make_current(folder, part, folder / f"{manifest.data_version[:12]}-{uuid.uuid4().hex[:6]}")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        _remove_if_empty(folder)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process at the latest."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_current(folder: Path, part: Path, version: Path) -> None:
    previous = (folder / CURRENT).resolve()
    link = part.with_name(f"{part.name}.link")
    part.rename(version)
    try:
        link.symlink_to(version.name)
        link.replace(folder / CURRENT)
    except OSError:
        link.unlink(missing_ok=True)
        shutil.rmtree(version, ignore_errors=True)
        raise
    _sync(folder)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and not old.name.startswith(".") and old not in (previous, version):
            shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed writer left: a `.part-` folder that nobody holds the lock of."""
    for part in folder.glob(".part-*"):
        if part.is_symlink():
            part.unlink(missing_ok=True)
            continue
        try:
            descriptor = os.open(part, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    for path in (folder, folder.parent):
        try:
            path.rmdir()
        except OSError:
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
