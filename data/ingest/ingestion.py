"""From raw events to a data set on disk: read, validate, put in order, write. Safe to repeat and to interrupt."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import polars as pl

from cluster.assets import MOVIELENS_100K, fetch
from cluster.errors import TowerlineError
from data.dataset import Dataset, dataset_folder, open_dataset
from data.disk import clear_disk_errors
from data.expectations import DatasetExpectations
from data.ingest.attributes import Entities, checked_entities, read_entities
from data.ingest.graph import IngestionGraph
from data.ingest.quarantine import is_same_quarantine
from data.parallel import Run, in_process
from data.quality.rules import Context
from data.quality.validation import EventRules, polars_schema
from data.quality.validation_report import JSON_FILE, ValidationReport, read_validation
from data.schema import ITEM_ID, ITEMS, USER_ID, USERS
from data.sources import movielens
from data.sources.events import EventsSource
from data.sources.location import is_address
from data.sources.partitions import Partitions
from data.sources.source import Source
from data.sources.sql import SqlQuery, is_database
from data.sources.stream import is_stream, open_stream
from data.sources.tabular import open_table
from data.versions import CURRENT, new_version

logger = logging.getLogger(__name__)

CONTRACT = DatasetExpectations()
"""What the contract itself demands."""

APPENDED = "feedback and streams"
"""What a manifest calls the events of the online store."""


@dataclass(frozen=True)
class TabularSource:
    """What a person brings along."""

    events: Path | str | None = None
    """Path, glob or address of files, of a database or of a stream. Without it, only the data set that comes along can
    be meant."""
    items: Path | str | None = None
    users: Path | str | None = None
    item_title: str | None = None
    """Column of the title in `items`; `title` if there is one."""
    delimiter: str | None = None
    """Of CSV files; by default a comma, in .tsv a tab."""
    item_attributes: Sequence[str] = ()
    user_attributes: Sequence[str] = ()
    partitions: Partitions | None = None
    query: str | None = None
    """SELECT that gives the events, if they are in a database."""
    table: str | None = None
    """Instead of a query."""
    order_by: str | None = None
    """Column that puts the rows of the query in order."""


@dataclass(frozen=True)
class Ingested:
    """What was read and what became of it."""

    dataset: Dataset
    rows_read: int
    """Event rows of the source."""
    is_new: bool
    """Whether there is a new version; without anything new to say, the one that was current stays."""
    already_there: int = 0
    """Events of the source that the data set had before they were to be added."""
    quarantined: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(table, reason) → rows."""


def ingest(
    home: Path,
    name: str,
    source: TabularSource,
    rules: EventRules,
    *,
    expectations: DatasetExpectations = CONTRACT,
    append: bool = False,
    run: Run = in_process,
) -> Ingested:
    """Read what `source` names into data set `name`, or MovieLens-100K if it names no events and `name` is its own."""
    if source.events is None and name == movielens.NAME:
        return ingest_movielens(
            home, fetch(MOVIELENS_100K), rules.now, expectations=expectations, append=append, run=run
        )
    return ingest_files(home, name, source, rules, expectations=expectations, append=append, run=run)


def ingest_movielens(
    home: Path,
    folder: Path,
    now: datetime,
    name: str = movielens.NAME,
    *,
    expectations: DatasetExpectations = CONTRACT,
    append: bool = False,
    run: Run = in_process,
) -> Ingested:
    """Read MovieLens-100K from `folder` (the three files of the asset) into data set `name`."""
    return ingest_source(
        home,
        name,
        movielens.ratings(folder),
        movielens.event_rules(now),
        items=checked_entities(movielens.read_items(folder), expectations.items, Context(now)),
        users=checked_entities(movielens.read_users(folder), expectations.users, Context(now)),
        expectations=expectations,
        append=append,
        run=run,
    )


def ingest_files(
    home: Path,
    name: str,
    source: TabularSource,
    rules: EventRules,
    *,
    expectations: DatasetExpectations = CONTRACT,
    append: bool = False,
    run: Run = in_process,
) -> Ingested:
    """Read a person's own events, items and users into data set `name`.

    Raises TowerlineError, with nothing written, for whatever is wrong with a file or a column as a whole, when no row
    is good or too many are broken, and when there are too few users to evaluate any model on.
    """
    if source.events is None:
        raise TowerlineError(f"--events is missing: data set {name!r} needs a file (only {movielens.NAME} does not)")
    return ingest_source(
        home,
        name,
        open_source(source, rules),
        rules,
        items=_read_optional(ITEM_ID, source, rules, expectations),
        users=_read_optional(USER_ID, source, rules, expectations),
        expectations=expectations,
        append=append,
        run=run,
    )


def ingest_appended(
    home: Path,
    name: str,
    events: pl.DataFrame,
    rules: EventRules,
    *,
    expectations: DatasetExpectations = CONTRACT,
    run: Run = in_process,
) -> Ingested:
    """Add to data set `name` the events that feedback and streams appended to its online store, as they stand there."""
    if events.is_empty():
        return Ingested(open_dataset(home, name), 0, is_new=False)
    source = EventsSource(APPENDED, events)
    return ingest_source(home, name, source, rules, expectations=expectations, append=True, run=run)


def open_source(source: TabularSource, rules: EventRules) -> Source:
    """The events that `source` names. Raises TowerlineError for what cannot be opened."""
    address = str(source.events)
    if is_stream(address):
        return open_stream(address, rules)
    if is_database(address):
        return SqlQuery.at(address, source.query, source.table, source.order_by)
    if source.query or source.table or source.order_by:
        raise TowerlineError(f"--query, --table and --order-by are for a database; {address} is none")
    return open_table(address, source.delimiter, source.partitions)


def ingest_source(
    home: Path,
    name: str,
    source: Source,
    rules: EventRules,
    *,
    items: Entities | None = None,
    users: Entities | None = None,
    expectations: DatasetExpectations = CONTRACT,
    append: bool = False,
    run: Run = in_process,
) -> Ingested:
    """Read a source into data set `name`: as all of it or, with `append`, in addition to what is there.

    The same rows again make no new version, whether appended (an event is the same if its id is) or not. Raises
    TowerlineError, with nothing written, for whatever is wrong with the source as a whole.
    """
    folder = dataset_folder(home, name)
    previous = _to_add_to(home, name) if append else None
    current = previous or _current(home, name)
    with clear_disk_errors(f"writing data set {name!r} to {folder}"), new_version(folder) as version:
        graph = IngestionGraph(
            name=name,
            source=source,
            label=_label(source, previous),
            rules=rules,
            expectations=expectations,
            items=_merged(items, previous.items() if previous else pl.DataFrame(schema=polars_schema(ITEMS))),
            users=_merged(users, previous.users() if previous else pl.DataFrame(schema=polars_schema(USERS))),
            previous=previous,
            last_report=_last_report(current) if current else None,
            version=version.path,
            refusals=home / "reports" / f"refused-{name}",
            run=run,
        )
        built = graph.build()
        is_new = current is None or not (
            built.manifest.data_version == current.manifest.data_version
            and is_same_quarantine(version.path, current.path)
        )
        if is_new:
            version.publish(built.manifest.data_version[:12], after=previous.path if previous else None)
    return Ingested(
        open_dataset(home, name), built.rows_read, is_new, built.already_there, dict(built.reasons.most_common())
    )


def _to_add_to(home: Path, name: str) -> Dataset:
    if not (dataset_folder(home, name) / CURRENT).exists():
        raise TowerlineError(f"--append: there is no data set {name!r} to add to yet; leave out --append")
    return open_dataset(home, name)


def _current(home: Path, name: str) -> Dataset | None:
    """The version that will be replaced; one that was written in another form counts as none."""
    try:
        return open_dataset(home, name) if (dataset_folder(home, name) / CURRENT).exists() else None
    except TowerlineError:
        return None


def _last_report(current: Dataset) -> ValidationReport | None:
    """The report of the version there is, as a reference; one that was written in another form is none."""
    try:
        return read_validation(current.path / JSON_FILE)
    except TowerlineError as error:
        logger.warning("%s", error)
        return None


def _label(source: Source, previous: Dataset | None) -> str:
    name = source.name if is_address(source.name) else Path(source.name).name
    if previous is None or name in previous.manifest.source.split(" + "):
        return previous.manifest.source if previous else name
    return f"{previous.manifest.source} + {name}"


def _merged(new: Entities | None, old: pl.DataFrame) -> Entities:
    """What was known, updated; in the order in which it became known."""
    if new is None or old.is_empty():
        return new or Entities(old)
    (key,) = {ITEM_ID, USER_ID} & set(old.columns)
    order = pl.concat([old.select(key), new.table.select(key)]).unique(maintain_order=True)
    kept = pl.concat([new.table.select(old.columns), old.join(new.table, on=key, how="anti")])
    table = order.join(kept, on=key, how="left", maintain_order="left").select(old.columns)
    return replace(new, table=table)


def _read_optional(
    id_name: str, source: TabularSource, rules: EventRules, expectations: DatasetExpectations
) -> Entities | None:
    flag, is_item = id_name.removesuffix("_id"), id_name == ITEM_ID
    address = source.items if is_item else source.users
    attributes = source.item_attributes if is_item else source.user_attributes
    if address is None:
        if attributes:
            raise TowerlineError(
                f"--{flag}-attributes {','.join(attributes)}: there is no file for them; pass --{flag}s"
            )
        return None
    table = open_table(address, source.delimiter)
    available = table.columns()
    id_column = id_name if id_name in available else rules.columns.get(id_name, id_name)
    title = source.item_title or ("title" if "title" in available else None)
    return read_entities(
        table,
        id_name,
        id_column,
        attributes,
        title if is_item else None,
        expectations=expectations.items if is_item else expectations.users,
        context=Context(rules.now),
    )
