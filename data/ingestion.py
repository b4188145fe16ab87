"""From raw files to a data set on disk: read, validate, put in order, write."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import polars as pl

from cluster.assets import MOVIELENS_100K, fetch
from cluster.errors import TowerlineError
from data.attributes import Entities, read_entities
from data.dataset import INGEST_TIME_IS_EVENT_TIME, Dataset, write_dataset
from data.events import with_event_ids
from data.schema import EVENT_ID, EVENTS, INGEST_TIME, ITEM_ID, ITEMS, SOURCE_ROW, USER_ID, USERS
from data.sources import movielens
from data.sources.chunk import Broken
from data.sources.tabular import Table, open_table
from data.splits import count_held_out_users, require_users
from data.validation import (
    REASON,
    EventRules,
    check_types,
    find_repeated,
    polars_schema,
    quarantine_table,
    resolve_columns,
    rows_as_json,
    validate_events,
)

logger = logging.getLogger(__name__)

ROWS_PER_MESSAGE = 500_000
MINIMUM_USERS = 2
"""Users with enough events to be held out that a data set must have, for any later job to be able to evaluate."""


@dataclass(frozen=True)
class TabularSource:
    """Files that a person brings along."""

    events: Path | None = None
    """Without it, only the data set that comes along can be meant."""
    items: Path | None = None
    users: Path | None = None
    item_title: str | None = None
    """Column of the title in `items`; `title` if there is one."""
    delimiter: str | None = None
    """Of CSV files; by default a comma, in .tsv a tab."""
    item_attributes: Sequence[str] = ()
    user_attributes: Sequence[str] = ()


@dataclass(frozen=True)
class EventsRead:
    """Events of a file."""

    table: pl.DataFrame
    """Good events in the contract's columns."""
    broken: list[Broken]
    """Rows that break the contract."""
    rows_read: int
    ingest_time_rule: str


@dataclass(frozen=True)
class Ingested:
    """What was read and what became of it."""

    dataset: Dataset
    rows_read: int
    """Event rows of the source."""
    quarantined: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(table, reason) → rows."""


def ingest(home: Path, name: str, source: TabularSource, rules: EventRules) -> Ingested:
    """Read what `source` names into data set `name`, or MovieLens-100K if it names no events and `name` is its own."""
    if source.events is None and name == movielens.NAME:
        return ingest_movielens(home, fetch(MOVIELENS_100K), rules.now)
    return ingest_files(home, name, source, rules)


def ingest_movielens(home: Path, folder: Path, now: datetime, name: str = movielens.NAME) -> Ingested:
    """Read MovieLens-100K from `folder` (the three files of the asset) into data set `name`."""
    rules = movielens.event_rules(now)
    events = read_events(movielens.events_file(folder), rules)
    items, users = movielens.read_items(folder), movielens.read_users(folder)
    entities = Entities(items, [], items.height), Entities(users, [], users.height)
    return _write(home, name, events, *entities, source=movielens.SOURCE)


def ingest_files(home: Path, name: str, source: TabularSource, rules: EventRules) -> Ingested:
    """Read a person's own files into data set `name`.

    Raises TowerlineError, with nothing written, for whatever is wrong with a file or a column as a whole, when no row
    is good, and when there are too few users to evaluate any model on.
    """
    if source.events is None:
        raise TowerlineError(f"--events is missing: data set {name!r} needs a file (only {movielens.NAME} does not)")
    events = read_events(open_table(source.events, source.delimiter), rules)
    items = _read_optional(source.items, ITEM_ID, source.item_attributes, source, rules)
    users = _read_optional(source.users, USER_ID, source.user_attributes, source, rules)
    return _write(home, name, events, items, users, source=source.events.name)


def read_events(table: Table, rules: EventRules) -> EventsRead:
    """All events of a file. Raises TowerlineError if a column cannot be used or no row is an event."""
    columns = resolve_columns(rules.columns, table.columns(), str(table.path))
    good: list[pl.DataFrame] = []
    broken: list[Broken] = []
    rows_read = 0
    for chunk in table.chunks():
        rows_read += len(chunk.lines) + len(chunk.broken)
        if rows_read // ROWS_PER_MESSAGE > (rows_read - len(chunk.lines)) // ROWS_PER_MESSAGE:
            logger.info("%s: %s rows read", table.path.name, f"{rows_read:,}")
        broken += chunk.broken
        if chunk.lines:
            check_types(chunk.rows, columns, rules.time_unit, str(table.path), has_types=table.has_types)
            events, bad = validate_events(chunk.rows, chunk.lines, columns, rules)
            good.append(events)
            broken += bad
    if not rows_read:
        raise TowerlineError(f"{table.path} is empty: it has no rows; pass a file with events")
    if not any(events.height for events in good):
        reason, count = Counter(row.reason for row in broken).most_common(1)[0]
        raise TowerlineError(
            f"{table.path}: none of its {rows_read} rows is an event; {count} of them: {reason} (line "
            f"{broken[0].line}: {broken[0].row[:200]}). Check --columns and --time-unit"
        )
    events = pl.concat(good)
    repeated = find_repeated(events)
    broken += _raw_rows(table, dict(repeated.select(SOURCE_ROW, REASON).iter_rows()))
    events = events.join(repeated, on=SOURCE_ROW, how="anti")
    if EVENT_ID not in columns:
        events = with_event_ids(events)
    known = columns.get(INGEST_TIME)
    rule = f"ingest_time from column {known!r}" if known else INGEST_TIME_IS_EVENT_TIME
    return EventsRead(events.select(EVENTS.names), sorted(broken), rows_read, rule)


def _raw_rows(table: Table, reasons: Mapping[int, str]) -> list[Broken]:
    """The raw rows of the given lines: read again, for they are few and to keep all would double the memory."""
    if not reasons:
        return []
    found = []
    for chunk in table.chunks():
        is_wanted = [line in reasons for line in chunk.lines]
        lines = [line for line in chunk.lines if line in reasons]
        rows = rows_as_json(chunk.rows.filter(pl.Series(is_wanted, dtype=pl.Boolean)))
        found += [Broken(line, reasons[line], row) for line, row in zip(lines, rows, strict=True)]
    return found


def _read_optional(
    path: Path | None, id_name: str, attributes: Sequence[str], source: TabularSource, rules: EventRules
) -> Entities:
    if path is None:
        if attributes:
            flag = id_name.removesuffix("_id")
            raise TowerlineError(
                f"--{flag}-attributes {','.join(attributes)}: there is no file for them; pass --{flag}s"
            )
        return Entities(pl.DataFrame(schema=polars_schema(ITEMS if id_name == ITEM_ID else USERS)), [], 0)
    table = open_table(path, source.delimiter)
    available = table.columns()
    id_column = id_name if id_name in available else rules.columns.get(id_name, id_name)
    title = source.item_title or ("title" if "title" in available else None)
    return read_entities(table, id_name, id_column, attributes, title if id_name == ITEM_ID else None)


def _write(home: Path, name: str, events: EventsRead, items: Entities, users: Entities, *, source: str) -> Ingested:
    require_users(count_held_out_users(events.table), MINIMUM_USERS, events.table.get_column(USER_ID).n_unique())
    broken = {"events": events.broken, "items": items.broken, "users": users.broken}
    quarantine = pl.concat([quarantine_table(table, rows) for table, rows in broken.items()])
    dataset = write_dataset(
        home,
        name,
        events=events.table,
        items=items.table,
        users=users.table,
        quarantine=quarantine,
        source=source,
        ingest_time_rule=events.ingest_time_rule,
    )
    counts = Counter(quarantine.select("table", "reason").iter_rows())
    return Ingested(dataset, events.rows_read, {(row[0], row[1]): count for row, count in counts.most_common()})
