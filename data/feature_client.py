"""Features in a notebook: as of any moment in the past, as of now, and what a view is about.

from data.feature_client import Features

features = Features("movielens-100k")
features.at(["1", "2"], "1998-01-01")
features.describe("user_activity")
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import list_datasets, open_dataset
from data.features import (
    COUNTED_EVENTS,
    NEVER,
    TIME,
    computation,
    feature_fingerprints,
    views,
    with_item_share,
)
from data.offline.store import list_snapshots
from data.online.store import OnlineStore, open_online_store
from data.schema import (
    ATTRIBUTES,
    EVENT_ID,
    EVENT_TIME,
    EVENTS,
    INGEST_TIME,
    ITEM_ID,
    SOURCE_ROW,
    USER_ATTRIBUTES,
    USER_ID,
)
from data.temporal.point_in_time import features_of
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView, views_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Moments = datetime | str | Sequence[datetime | str]
"""One moment for all, or one each. Text is ISO 8601; a moment without a time zone is taken as UTC."""

DESCRIBED = 5_000
"""So many entities are drawn into a picture of a view."""


class Features:
    """The features of one data set, events included that its online store was told of since."""

    def __init__(self, dataset: str | None = None, settings: Settings | None = None) -> None:
        """`dataset` may be left out where there is only one.

        Raises:
            TowerlineError: there is no such data set, or none is named and there are several.
        """
        self._settings = settings or Settings()
        self.dataset = open_dataset(self._settings.home, dataset or _only_dataset(self._settings))
        self.views = views()

    def at(self, users: str | Sequence[str], when: Moments, views: Sequence[FeatureView] | None = None) -> pl.DataFrame:
        """What could be known of users at a moment: a row per user, in order, with `known` and all features.

        Exact: of the events up to `when`, those that had become known by then. Reads only these users' buckets. A user
        without any has `known` false and the defaults. `views`: others than the declared ones, such as a new one.
        """
        keys = _keys(USER_ID, users, when)
        features = self._of(USER, keys, views)
        described = self.dataset.users().select(USER_ID, pl.col(ATTRIBUTES).alias(USER_ATTRIBUTES))
        with_attributes = features.join(described, on=USER_ID, how="left", maintain_order="left")
        return with_attributes.with_columns(pl.col(USER_ATTRIBUTES).fill_null([]))

    def items_at(
        self, items: str | Sequence[str], when: Moments, views: Sequence[FeatureView] | None = None
    ) -> pl.DataFrame:
        """What could be known of items at a moment: a row per item, in order, with `known` and all features."""
        keys = _keys(ITEM_ID, items, when)
        features = self._of(ITEM, keys, views)
        if views is not None:
            return features
        counted = features_of(views_of(EVERYTHING, self.views), self._all_events, keys).select(COUNTED_EVENTS)
        return with_item_share(features.hstack(counted)).drop(COUNTED_EVENTS)

    def now(self, users: str | Sequence[str]) -> pl.DataFrame:
        """The features of users as the online store has them this moment.

        Raises:
            TowerlineError: nothing has been published to it.
        """
        if self._store.published_version() is None:
            raise TowerlineError(
                f"nothing is published to the online store of data set {self.dataset.name!r}; "
                f"`python -m jobs.serve_models --dataset {self.dataset.name}` publishes it"
            )
        return self._store.read(USER, [users] if isinstance(users, str) else list(users), datetime.now(UTC))

    def describe(self, view: str | FeatureView) -> "Figure":
        """Print what a view is and where it comes from; gives a picture of its features' distribution.

        Raises:
            TowerlineError: no view has this name.
        """
        from data.offline.catalogue import print_snapshots, print_views
        from data.view_picture import picture

        chosen = self._declared(view) if isinstance(view, str) else view
        own = {} if isinstance(view, str) else {chosen.name: chosen.fingerprint(computation())}
        fingerprints = feature_fingerprints() | own
        print_views([chosen], fingerprints)
        print_snapshots(list_snapshots(self._settings.home, self.dataset.name), fingerprints)
        moment = self.dataset.manifest.last_event_time
        return picture(chosen, self._some(chosen, moment), moment)

    def _of(self, entity: Entity, keys: pl.DataFrame, views: Sequence[FeatureView] | None) -> pl.DataFrame:
        chosen = views_of(entity, self.views) if views is None else tuple(views)
        for view in chosen:
            if view.entity != entity:
                raise TowerlineError(f"view {view.name!r} is about {view.entity.name}, not about {entity.name}")
        assert entity.key is not None
        ids = keys.get_column(entity.key).unique().to_list()
        stored = self.dataset.entity_events(entity, ids).select(EVENTS.names)
        events = pl.concat([stored, self._appended.filter(pl.col(entity.key).is_in(ids))])
        met = events.group_by(entity.key).agg(pl.max_horizontal(EVENT_TIME, INGEST_TIME).min().alias("_met"))
        found = features_of(chosen, events, keys).join(met, on=entity.key, how="left", maintain_order="left")
        known = (pl.col("_met") <= pl.col(EVENT_TIME)).fill_null(value=False).alias("known")
        features = [name for view in chosen for name in view.features]
        return found.select(entity.key, EVENT_TIME, known, *features)

    def _some(self, view: FeatureView, moment: datetime) -> pl.DataFrame:
        """The features of some entities with events, as of a moment."""
        if view.entity.key is None:
            return features_of((view,), self._all_events, _keys("id", "", moment))
        parts: list[pl.DataFrame] = []
        for bucket in range(self.dataset.manifest.buckets):
            if sum(part.height for part in parts) >= DESCRIBED:
                break
            events = self.dataset.bucket(view.entity, bucket)
            ids = events.get_column(view.entity.key).unique(maintain_order=True).head(DESCRIBED).to_list()
            parts.append(features_of((view,), events, _keys(view.entity.key, ids, moment)))
        return pl.concat(parts).head(DESCRIBED)

    def _declared(self, name: str) -> FeatureView:
        for view in self.views:
            if view.name == name:
                return view
        known = ", ".join(view.name for view in self.views)
        raise TowerlineError(f"there is no feature view {name!r} (there are: {known}); see data/features.py")

    @cached_property
    def _store(self) -> OnlineStore:
        return open_online_store(self._settings, self.dataset.name)

    @cached_property
    def _appended(self) -> pl.DataFrame:
        """Events that the online store knows and this version of the data set does not."""
        appended = self._store.appended_events().select(EVENTS.names)
        users = appended.get_column(USER_ID).unique().to_list()
        return appended.join(self.dataset.entity_events(USER, users).select(EVENT_ID), on=EVENT_ID, how="anti")

    @cached_property
    def _all_events(self) -> pl.DataFrame:
        """All events, in the columns that features of everything are computed from."""
        declared = views_of(EVERYTHING, self.views)
        columns = sorted({column for view in declared for name in view.features for column in view.lineage(name)})
        buckets = [self.dataset.bucket(USER, bucket, columns) for bucket in range(self.dataset.manifest.buckets)]
        return pl.concat([*buckets, self._appended.select(columns)])


def _keys(column: str, ids: str | Sequence[str], when: Moments) -> pl.DataFrame:
    names = [ids] if isinstance(ids, str) else list(ids)
    moments = [when] * len(names) if isinstance(when, datetime | str) else list(when)
    if len(moments) != len(names):
        raise TowerlineError(f"{len(moments)} moments for {len(names)} ids; give one moment, or one for each")
    return pl.DataFrame(
        {column: names, EVENT_TIME: [_moment(each) for each in moments], SOURCE_ROW: [NEVER] * len(names)},
        schema={column: pl.String, EVENT_TIME: TIME, SOURCE_ROW: pl.Int64},
    )


def _moment(when: datetime | str) -> datetime:
    try:
        moment = when if isinstance(when, datetime) else datetime.fromisoformat(when)
    except ValueError as error:
        raise TowerlineError(f"{when!r} is no moment; give a datetime, or text such as 2024-05-01T12:00:00Z") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _only_dataset(settings: Settings) -> str:
    known = list_datasets(settings.home)
    if len(known) == 1:
        return known[0]
    raise TowerlineError(
        f"which data set? {settings.home / 'datasets'} has {', '.join(known) or 'none'}; name one: Features('…')"
    )
