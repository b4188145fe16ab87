"""Reads the user's features as of now, through the same functions that computed them for training."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import polars as pl

from data.features import NEVER, TIME, user_features_at
from data.schema import (
    ATTRIBUTES,
    EVENT_TIME,
    INGEST_TIME,
    ITEM_EVENT_COUNT,
    ITEM_ID,
    ITEM_SUM_VALUE,
    SOURCE_ROW,
    USER_ATTRIBUTES,
    USER_ID,
    VALUE,
)
from serve.batch import Batch
from serve.variant import Variant
from train.vocabulary import UNKNOWN

_KEY = "_request"
_READ = (USER_ID, ITEM_ID, VALUE, EVENT_TIME, INGEST_TIME, SOURCE_ROW)


class UserStore(Protocol):
    """What the stage reads."""

    def user_events(self, user_ids: Sequence[str]) -> pl.DataFrame:
        """All events of these users, in the total order."""
        ...

    def user_attributes(self, user_ids: Sequence[str]) -> pl.DataFrame:
        """user_id and attributes of those of these users that have some."""
        ...

    def item_aggregates(self) -> pl.DataFrame:
        """item_event_count and item_sum_value of every item with an event."""
        ...


class Features:
    """User features of a batch, one row per request."""

    def __init__(self, variant: Variant, store: UserStore) -> None:
        self._variant = variant
        self._store = store

    def run(self, batch: Batch) -> Batch:
        """Fill in `users`, `known` and `seen`. A user nobody knows has an empty history."""
        asked = [call.user_id for call in batch.calls]
        distinct = list(dict.fromkeys(asked))
        events = self._store.user_events(distinct).select(_READ).filter(pl.col(EVENT_TIME) <= batch.at)
        attributes = self._store.user_attributes(distinct).select(USER_ID, ATTRIBUTES)
        keys = [str(row) for row in range(len(batch))]
        requests = pl.DataFrame({_KEY: keys, USER_ID: asked}, schema={_KEY: pl.String, USER_ID: pl.String})
        per_request = requests.join(events, on=USER_ID, how="inner", maintain_order="left_right")
        history = pl.concat([_by_request(per_request), self._recent(batch, per_request)])
        windows = user_features_at(history, keys, batch.at, self._variant.history_length)
        users = windows.with_columns(
            pl.Series(USER_ID, asked, dtype=pl.String), pl.lit(batch.at).cast(TIME).alias(EVENT_TIME)
        ).join(attributes.rename({ATTRIBUTES: USER_ATTRIBUTES}), on=USER_ID, how="left", maintain_order="left")
        stored = {*events[USER_ID], *attributes[USER_ID]}
        return dataclasses.replace(
            batch,
            users=users.with_columns(pl.col(USER_ATTRIBUTES).fill_null(pl.lit([], dtype=pl.List(pl.String)))),
            known=tuple(user in stored for user in asked),
            seen=_seen(history, keys),
        )

    def _recent(self, batch: Batch, per_request: pl.DataFrame) -> pl.DataFrame:
        """The recent items that requests bring along, as events of this moment.

        How well they were liked is not known, so each has the mean value of the user's events, or of all events.
        """
        means = dict(per_request.group_by(_KEY).agg(pl.col(VALUE).mean()).iter_rows())
        brought = [
            (str(row), item)
            for row, call in enumerate(batch.calls)
            for item in call.recent_items
            if self._variant.catalogue.code(item) != UNKNOWN
        ]
        default = self._mean_value() if any(key not in means for key, _ in brought) else 0.0
        rows = [
            (key, item, means.get(key, default), batch.at, batch.at, NEVER - len(brought) + place)
            for place, (key, item) in enumerate(brought)
        ]
        return pl.DataFrame(rows, schema=_by_request(per_request).schema, orient="row")

    def _mean_value(self) -> float:
        items = self._store.item_aggregates()
        return float(items[ITEM_SUM_VALUE].sum()) / max(int(items[ITEM_EVENT_COUNT].sum()), 1)


def _by_request(per_request: pl.DataFrame) -> pl.DataFrame:
    """The events with the request in the user's place: two requests of one user are two histories."""
    return per_request.drop(USER_ID).rename({_KEY: USER_ID}).select(_READ)


def _seen(history: pl.DataFrame, keys: Sequence[str]) -> tuple[frozenset[str], ...]:
    items = {str(key): frozenset(items) for key, items in history.group_by(USER_ID).agg(ITEM_ID).iter_rows()}
    return tuple(items.get(key, frozenset()) for key in keys)
