"""A data set on disk: events, items and users in Parquet under one version, replaced as a whole or not at all.

    $TOWERLINE_HOME/datasets/<name>/current -> <version folder>
        manifest.json, items.parquet, users.parquet, quarantine.parquet
        by_user/bucket-00000.parquet …   the events, bucketed by user, each file sorted by (user, time, row)
        by_item/bucket-00000.parquet …   the same events, bucketed by item

A new version is written beside the old one and `current` is switched when it is complete, so that a reader sees
either. The version replaced last is kept, for whoever is reading it; older ones are removed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import TowerlineError
from data.buckets import bucket_file, bucket_of, buckets_for, split_by_bucket, write_table
from data.content import content_version, to_contract, version_of
from data.disk import clear_disk_errors
from data.events import next_file
from data.schema import EVENT_TIME, EVENTS, ITEM_ID, ITEMS, QUARANTINE, SOURCE_ROW, SPLIT, USER_ID, USERS
from data.splits import TOTAL_ORDER, assign_splits, count_held_out_users
from data.versions import CURRENT, new_version
from data.views import ITEM, USER, Entity

ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
QUARANTINE_FILE = "quarantine.parquet"
MANIFEST_FILE = "manifest.json"

STORED_EVENTS = EVENTS.append(pa.field(SPLIT, pa.string(), nullable=False))
"""Columns of the bucket files."""

INGEST_TIME_IS_EVENT_TIME = "ingest_time = event_time (backfill: history was known when it happened)"
"""The rule for a source that does not say when the system learnt of an event."""

NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class DatasetManifest(BaseModel):
    """What a version of a data set holds and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data_version: str
    """SHA-256 over the content of the events, items and users: the same rows give the same version."""
    buckets: int
    """Buckets of users, and of items: a power of two."""
    events: int
    users: int
    """Distinct users with events."""
    held_out_users: int
    """Users with enough events to be held out by leave-one-out."""
    items: int
    """Items of the catalogue and items that have events only."""
    quarantined: int
    first_event_time: datetime
    last_event_time: datetime
    next_file: int
    """Number of the file that may be added next, see `data.events.ROWS_PER_FILE`."""
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
        """All events in the total order (event_time, source_row): columns of `STORED_EVENTS`."""
        return self._read([self.bucket_file(USER, bucket) for bucket in range(self.manifest.buckets)]).sort(TOTAL_ORDER)

    def items(self) -> pl.DataFrame:
        """Columns of `data.schema.ITEMS`. An item that has only events has a row with null title."""
        return read_items(self.path)

    def users(self) -> pl.DataFrame:
        """Columns of `data.schema.USERS`; users without a row there have no attributes."""
        return pl.read_parquet(self.path / USERS_FILE)

    def quarantine(self) -> pl.DataFrame:
        """Rows that were refused: table, line, reason, row (JSON)."""
        return pl.read_parquet(self.path / QUARANTINE_FILE)

    def bucket_file(self, entity: Entity, bucket: int) -> Path:
        """File of a bucket of users or of items, sorted by (id, event_time, source_row)."""
        return bucket_file(self.path / bucket_folder(entity), bucket)

    def bucket(self, entity: Entity, bucket: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The events of a bucket of users or of items, sorted by (id, event_time, source_row)."""
        return self._read([self.bucket_file(entity, bucket)], columns)

    def entity_events(self, entity: Entity, ids: Iterable[str]) -> pl.DataFrame:
        """The events of some users or items, sorted by (event_time, source_row); reads only their buckets."""
        wanted = set(ids)
        buckets = sorted({bucket_of(entity_id, self.manifest.buckets) for entity_id in wanted})
        is_wanted = pl.col(_key(entity)).is_in(sorted(wanted))
        found = [self.bucket(entity, bucket).filter(is_wanted) for bucket in buckets]
        return pl.concat(found or [pl.DataFrame(STORED_EVENTS.empty_table())]).sort(TOTAL_ORDER)

    def _read(self, files: list[Path], columns: Sequence[str] | None = None) -> pl.DataFrame:
        try:
            return pl.concat(
                [pl.read_parquet(file, columns=None if columns is None else list(columns)) for file in files]
            )
        except (FileNotFoundError, pl.exceptions.ComputeError) as error:
            raise TowerlineError(
                f"data set {self.name!r}: {self.path} is not whole ({error}); ingest it again"
            ) from error


def open_dataset(home: Path, name: str) -> Dataset:
    """The current version of data set `name`. Raises TowerlineError, naming those there are, if it does not exist."""
    current = dataset_folder(home, name) / CURRENT
    if not current.exists():
        known = ", ".join(list_datasets(home)) or "none"
        raise TowerlineError(
            f"data set {name!r} does not exist in {home / 'datasets'} (there are: {known}); make it with "
            f"`python -m jobs.ingest_events --dataset {name}`, and --events FILE if the events are your own"
        )
    path = current.resolve()
    try:
        manifest = DatasetManifest.model_validate_json((path / MANIFEST_FILE).read_text())
    except ValidationError as error:
        raise TowerlineError(
            f"data set {name!r}: {path} was written in another form than this version of Towerline reads "
            f"({error.error_count()} differences); ingest it again"
        ) from error
    return Dataset(name, path, manifest)


def kept_versions(home: Path, name: str) -> list[Path]:
    """Folders of the versions of data set `name` that are on disk, the current one first; none if there is none."""
    folder = dataset_folder(home, name)
    files = [folder / CURRENT / ITEMS_FILE, *sorted(folder.glob(f"[!.]*/{ITEMS_FILE}"))]
    return list(dict.fromkeys(file.parent.resolve() for file in files if file.exists()))


def read_items(version: Path) -> pl.DataFrame:
    """The items of a version, as `Dataset.items`."""
    return pl.read_parquet(version / ITEMS_FILE)


def list_datasets(home: Path) -> list[str]:
    """Names of the data sets in `home`, sorted."""
    return sorted(path.parent.name for path in (home / "datasets").glob(f"*/{CURRENT}"))


def dataset_folder(home: Path, name: str) -> Path:
    """Folder of the versions of a data set. Raises TowerlineError for a name that cannot be a folder."""
    if not NAME_RULE.fullmatch(name):
        raise TowerlineError(
            f"--dataset {name!r} cannot be a folder name; use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return home / "datasets" / name


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
    """Write a new version of data set `name` from tables in memory and make it current; a failure leaves nothing.

    Raises TowerlineError when the disk is full, the name cannot be a folder, or there are no events.
    """
    folder = dataset_folder(home, name)
    if events.is_empty():
        raise TowerlineError(f"data set {name!r}: {source} gave no events; nothing was written")
    buckets = buckets_for(events.height)
    stored = assign_splits(pl.DataFrame(to_contract(events, EVENTS)))
    with clear_disk_errors(f"writing data set {name!r} to {folder}"), new_version(folder) as version:
        contents = {
            entity: write_buckets(version.path, entity, split_by_bucket(stored, _key(entity), buckets), buckets)
            for entity in (USER, ITEM)
        }
        described = write_descriptions(version.path, items, users)
        write_table(to_contract(quarantine, QUARANTINE), version.path / QUARANTINE_FILE)
        manifest = DatasetManifest(
            name=name,
            data_version=version_of(contents[USER], described),
            buckets=buckets,
            events=events.height,
            users=events.get_column(USER_ID).n_unique(),
            held_out_users=count_held_out_users(events),
            items=pl.concat([events.get_column(ITEM_ID), items.get_column(ITEM_ID)]).n_unique(),
            quarantined=quarantine.height,
            first_event_time=events.get_column(EVENT_TIME).min(),
            last_event_time=events.get_column(EVENT_TIME).max(),
            next_file=next_file(events),
            ingest_time_rule=ingest_time_rule,
            source=source,
        )
        (version.path / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
        version.publish(manifest.data_version[:12])
    return open_dataset(home, name)


def write_buckets(path: Path, entity: Entity, parts: dict[int, pl.DataFrame], buckets: int) -> list[str]:
    """Write all bucket files of an entity; gives the content version of each."""
    empty = pl.DataFrame(STORED_EVENTS.empty_table())
    return [write_bucket(path, entity, bucket, parts.get(bucket, empty)) for bucket in range(buckets)]


def write_bucket(path: Path, entity: Entity, bucket: int, events: pl.DataFrame) -> str:
    """Write one bucket of a version, sorted by (id, event_time, source_row); gives its content version."""
    folder = path / bucket_folder(entity)
    folder.mkdir(exist_ok=True)
    table = to_contract(events.sort(_key(entity), EVENT_TIME, SOURCE_ROW), STORED_EVENTS)
    write_table(table, bucket_file(folder, bucket))
    return content_version([table])


def write_descriptions(path: Path, items: pl.DataFrame, users: pl.DataFrame) -> tuple[pa.Table, pa.Table]:
    """Write items and users of a version; gives both as written."""
    tables = to_contract(items, ITEMS), to_contract(users, USERS)
    for file, table in zip((ITEMS_FILE, USERS_FILE), tables, strict=True):
        write_table(table, path / file)
    return tables


def bucket_folder(entity: Entity) -> str:
    """Folder of the events bucketed by an entity, inside a version."""
    _key(entity)
    return f"by_{entity.name}"


def _key(entity: Entity) -> str:
    if entity.key is None:
        raise TowerlineError(f"events are bucketed by user and by item, not by {entity.name!r}")
    return entity.key
