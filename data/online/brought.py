"""Items that a request brings along: events of this very moment, which no store has been told of."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl

from data.features import NEVER
from data.online.entity_state import EPOCH
from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, EVENTS, INGEST_TIME, ITEM_ID, SOURCE_ROW, USER_ID, VALUE
from data.views import EVENT_TYPES

BROUGHT = "brought"
"""Event type of what a request brings along."""

BROUGHT_ITEMS = "brought_items"
BROUGHT_VALUE = "brought_value"


def brought_events(user_id: str, items: Sequence[str], value: float, at: datetime) -> pl.DataFrame:
    """One event per item, oldest first, after all others of the moment `at`.

    Known ever since, so that up to when a state knows of its entity (`known_until`) stays what the store says.
    """
    count = len(items)
    columns: dict[str, Any] = {
        **dict.fromkeys(EVENTS.names, [None] * count),
        EVENT_ID: [""] * count,
        EVENT_TYPE: [BROUGHT] * count,
        USER_ID: [user_id] * count,
        ITEM_ID: list(items),
        VALUE: [value] * count,
        EVENT_TIME: [at] * count,
        INGEST_TIME: [EPOCH] * count,
        SOURCE_ROW: range(NEVER - count, NEVER),
    }
    return pl.DataFrame(columns, schema=EVENT_TYPES)
