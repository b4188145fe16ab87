"""Publishing to SQLite only what a new version of a data set adds to the one that is read.

The new states are computed before the write transaction, for which appends wait. In it only those are computed once
more whose entity had an event appended meanwhile.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from data.dataset import Dataset
from data.online.entity_state import THE_ONLY_ID
from data.online.materialization import Additions, brought
from data.online.states.update import State
from data.online.stores.definitions import Definitions
from data.online.stores.sqlite_version import VersionTables, forget, log_after, log_of
from data.online.stores.version import Version
from data.schema import EVENT_ID
from data.views import EVENT_TYPES, EVERYTHING, ITEM, USER, Entity


@dataclass(frozen=True, eq=False)
class PreparedAdditions:
    """What is written if nothing gets in the way."""

    added: Sequence[Additions]
    applied: int
    """The source row up to which appended events were looked at."""
    new: pl.DataFrame
    brought: pl.DataFrame
    """Appended events that the data set has now."""
    states: Mapping[Entity, Mapping[str, State]]
    """As they become, of users and items."""
    everything: State
    """Of the new events alone."""
    attributes: Mapping[str, str]
    """Users' attributes (JSON) that are new or others."""
    without: Sequence[str]
    """Users who have no attributes any more."""


def prepared(
    connection: sqlite3.Connection,
    definitions: Definitions,
    version: Version,
    dataset: Dataset,
    added: Sequence[Additions],
) -> PreparedAdditions | None:
    """All that can be done before others wait; None if the data set says something else of an appended event."""
    events = pl.concat([pl.DataFrame(schema=EVENT_TYPES), *(each.events for each in added)])
    tables = VersionTables(connection, definitions, version.number)
    connection.execute("BEGIN")
    try:
        known = brought(log_of(connection, events.get_column(EVENT_ID).to_list()), events)
        if known is None:
            return None
        applied = tables.applied()
        new = events.join(known, on=EVENT_ID, how="anti")
        old = {entity: tables.states(entity, definitions.states[entity].ids_of(new)) for entity in (USER, ITEM)}
        had = tables.attributes()
    finally:
        connection.execute("COMMIT")
    states = {entity: _applied(definitions, entity, old[entity], new) for entity in (USER, ITEM)}
    everything = definitions.states[EVERYTHING].apply({THE_ONLY_ID: None}, new)[THE_ONLY_ID]
    wanted = {user_id: json.dumps(tokens) for user_id, tokens in dataset.users().iter_rows()}
    others = {user_id: tokens for user_id, tokens in wanted.items() if had.get(user_id) != tokens}
    return PreparedAdditions(
        added, applied, new, known, states, everything, others, [each for each in had if each not in wanted]
    )


def write_additions(
    connection: sqlite3.Connection, definitions: Definitions, version: Version, ready: PreparedAdditions
) -> bool:
    """Inside of a write transaction. False, with nothing changed, if an event that is added was appended meanwhile."""
    tables = VersionTables(connection, definitions, version.number)
    rest = log_after(connection, ready.applied)
    ids = [event_id for each in ready.added for event_id in each.events.get_column(EVENT_ID)]
    if rest.get_column(EVENT_ID).is_in(ids).any() or log_after(connection, tables.applied()).height:
        return False
    for entity in (USER, ITEM):
        assert entity.key is not None
        touched = rest.join(ready.new, on=entity.key, how="semi").get_column(entity.key).unique().to_list()
        again = ready.new.filter(pl.col(entity.key).is_in(touched))
        redone = _applied(definitions, entity, tables.states(entity, touched), again)
        tables.put(entity, {**ready.states[entity], **redone})
    tables.add_everything(ready.everything)
    tables.add_met(ready.new)
    tables.count(ready.new.height)
    forget(connection, ready.brought)
    for each in ready.added:
        tables.put_noted(each)
    tables.put_attributes(ready.attributes)
    tables.drop_attributes(ready.without)
    return True


def _applied(
    definitions: Definitions, entity: Entity, old: Mapping[str, State], events: pl.DataFrame
) -> dict[str, State]:
    states = definitions.states[entity]
    return states.apply({each: old.get(each) for each in states.ids_of(events)}, events)
