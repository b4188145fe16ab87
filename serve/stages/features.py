"""Reads the user's features as of now, through the same code that computed them for training."""

import dataclasses
from datetime import datetime

import polars as pl

from data.features import ALL_MEAN_VALUE, TIME
from data.online.brought import BROUGHT_ITEMS, BROUGHT_VALUE, brought_events
from data.online.entity_state import THE_ONLY_ID
from data.online.store import OnlineStore
from data.schema import EVENT_TIME, USER_ATTRIBUTES, USER_EVENT_COUNT, USER_ID, USER_MEAN_VALUE
from data.views import EVERYTHING, USER
from serve.batch import Batch, without
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN

TOKENS = pl.List(pl.String)


class Features:
    """User features of a batch, one row per request."""

    def __init__(self, catalogue: Catalogue, store: OnlineStore) -> None:
        self._catalogue = catalogue
        self._store = store

    def run(self, batch: Batch) -> Batch:
        """Fill in `data_version`, `users`, `everything`, `known` and `seen`. A user nobody knows has no history."""
        data_version = self._store.published_version()
        asked = [call.user_id for call in batch.calls]
        everything = without(self._store.read(EVERYTHING, [THE_ONLY_ID], batch.at), "known").row(0, named=True)
        stored = self._store.read(USER, asked, batch.at)
        brought = [self._in_catalogue(call.recent_items) for call in batch.calls]
        values = _values(stored, everything[ALL_MEAN_VALUE])
        users = self._with_brought(stored, brought, values, batch.at)
        attributes = dict(self._store.user_attributes(asked).iter_rows())
        seen = self._store.seen_items(asked)
        return dataclasses.replace(
            batch,
            data_version=data_version,
            users=without(users, "known").hstack(
                [
                    pl.Series(EVENT_TIME, [batch.at] * len(batch), dtype=TIME),
                    pl.Series(USER_ATTRIBUTES, [attributes.get(user, []) for user in asked], dtype=TOKENS),
                    pl.Series(BROUGHT_ITEMS, brought, dtype=TOKENS),
                    pl.Series(BROUGHT_VALUE, values, dtype=pl.Float32),
                ]
            ),
            everything=everything,
            known=tuple(
                known or user in attributes for known, user in zip(stored.get_column("known"), asked, strict=True)
            ),
            seen=tuple(met.union(own) for met, own in zip(seen, brought, strict=True)),
        )

    def _in_catalogue(self, items: tuple[str, ...]) -> list[str]:
        return [item for item in items if self._catalogue.code(item) != UNKNOWN]

    def _with_brought(
        self, stored: pl.DataFrame, brought: list[list[str]], values: list[float], at: datetime
    ) -> pl.DataFrame:
        """`stored`, but with what was brought along where anything was: events of this moment."""
        rows = [row for row, items in enumerate(brought) if items]
        if not rows:
            return stored
        users = stored.get_column(USER_ID).gather(rows).to_list()
        extra = {
            place: brought_events(user, brought[row], values[row], at)
            for place, (row, user) in enumerate(zip(rows, users, strict=True))
        }
        changed = dict(zip(rows, range(stored.height, stored.height + len(rows)), strict=True))
        both = pl.concat([stored, self._store.read(USER, users, at, extra=extra)])
        return both[[changed.get(row, row) for row in range(stored.height)]]


def _values(users: pl.DataFrame, mean_of_all: float) -> list[float]:
    """The value of brought items: how well they were liked is not known, so it is the user's mean, or everybody's."""
    counts, means = users.get_column(USER_EVENT_COUNT), users.get_column(USER_MEAN_VALUE)
    return [mean if count else mean_of_all for count, mean in zip(counts, means, strict=True)]
