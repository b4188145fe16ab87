"""What serving reads and feedback writes: the features of users and items as of any moment, kept up to date.

Every entity is one packed value (`data.online.entity_state`) that holds what does not go stale by itself; windows, time
to live and "time since" are finished when it is read. So online at a moment equals offline at that moment, also after a
long silence. SQLite by default, Redis when `TOWERLINE_ONLINE_STORE` names one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset
from data.views import Entity, FeatureView


class OnlineStore(Protocol):
    """The online store of one data set. Usable from several threads and processes, and picklable."""

    def publish(self, dataset: Dataset) -> int:
        """Make the states of `dataset` what is read; returns the number of events behind them, appended ones included.

        Written beside the version in use, which is read until the switch. Appended events that the data set does not
        bring (by event_id) stay. Only what is new is applied if the data set only adds to the published one; nothing
        is done if this very version and these definitions are published. A killed one is resumed by the next call.
        """
        ...

    def append_events(self, events: pl.DataFrame) -> int:
        """Store the events that are new by event_id; returns how many were. Durable and visible when this returns.

        `events` has the columns of the contract; `source_row` is not needed: the store gives its own, in order. A null
        or absent `ingest_time` becomes the moment of writing, later than that of any event appended before.
        """
        ...

    def read(
        self,
        entity: Entity,
        ids: Sequence[str],
        at: datetime,
        features: Sequence[str] | None = None,
        extra: Mapping[int, pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """The features of each id in order: the id column (none for EVERYTHING), features, `known`, `known_until`.

        An unknown id has `known` false, defaults and a null `known_until`, which else is the newest ingest_time of the
        entity's events. `at` before an event that is stored already counts as the moment of the newest one. One read
        of the store, whatever the number of ids. `extra`: events that count for a row (its number) as well, and are
        not stored.
        """
        ...

    def read_numbers(self, entity: Entity, ids: Sequence[str], at: datetime) -> npt.NDArray[np.float64]:
        """The scalar features (ids, `scalar_features(entity)`) as of `at`, before their cast to narrower types."""
        ...

    def scalar_features(self, entity: Entity) -> tuple[str, ...]:
        """The columns of `read_numbers`."""
        ...

    def seen_items(self, user_ids: Sequence[str]) -> list[frozenset[str]]:
        """All items that each user ever had an event with."""
        ...

    def user_attributes(self, user_ids: Sequence[str]) -> pl.DataFrame:
        """user_id and attributes of those of these users who have some, in the order asked."""
        ...

    def appended_events(self) -> pl.DataFrame:
        """Appended events (contract columns, by source_row) that no published data set has brought yet."""
        ...

    def published_version(self) -> str | None:
        """`data_version` of what is published for these definitions; None before the first time."""
        ...

    def fingerprints(self) -> Mapping[str, str]:
        """View → fingerprint of its definition, as published last by anyone; empty before the first time."""
        ...

    def close(self) -> None:
        """Give this thread's connection back; the next use opens another."""
        ...


def open_online_store(settings: Settings, dataset_name: str, views: Sequence[FeatureView] | None = None) -> OnlineStore:
    """The online store of a data set: what `TOWERLINE_ONLINE_STORE` names, else SQLite in `TOWERLINE_HOME`.

    Nothing is opened before the first use. `views` are the project's (`data.features.views()`) unless told otherwise.
    """
    if views is None:
        from data.features import views as declared

        views = declared()
    if settings.online_store:
        from data.online.stores.redis import RedisStore

        return RedisStore(settings.online_store, dataset_name, tuple(views))
    from data.online.stores.sqlite import SqliteStore

    return SqliteStore(settings.home / "online" / f"{dataset_name}.db", tuple(views))


def require_same_features(store: OnlineStore, dataset_name: str, views: Sequence[FeatureView]) -> None:
    """Raise TowerlineError if what is read is of other definitions than `views`: it would not see what is appended."""
    from data.features import fingerprints_of

    published = store.fingerprints()
    if published and published != fingerprints_of(views) and store.published_version() is None:
        found = ", ".join(f"{view} {fingerprint}" for view, fingerprint in published.items())
        raise TowerlineError(
            f"the online store of data set {dataset_name!r} holds features of other definitions than these ({found}); "
            "pass the --history-length that is served, or serve this code's features first"
        )
