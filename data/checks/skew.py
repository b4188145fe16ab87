"""Training-serving skew: what was read online, computed once more offline from the events, and every difference."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from data.aggregations import RecencyWeighted
from data.buckets import split_by_bucket
from data.checks.replay import KNOWN_UNTIL, READ, replay
from data.dataset import Dataset
from data.features import COUNTED_EVENTS, with_item_share
from data.online.brought import BROUGHT_ITEMS, BROUGHT_VALUE, brought_events
from data.schema import (
    ATTRIBUTES,
    DECISION_ID,
    EVENT_TIME,
    EVENTS,
    USER_ATTRIBUTES,
    USER_ID,
)
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView, views_of

DIFFERENCES = pl.Schema(
    {name: pl.String() for name in (DECISION_ID, "entity", "id", "feature", "online", "offline")},
)
"""Columns of a table of differences; values as Python writes them."""

FLOAT32_PRECISION = 1e-6
"""How far recency-weighted sums may be apart, relative: they add floats, each path in an order of its own."""


@dataclass(frozen=True)
class LoggedReads:
    """What some answers were made from: a row per read, with decision_id, its moment (event_time) and known_until."""

    users: pl.DataFrame
    """And user_id, the items that came with the request and their value (`data.online.brought`), the features of users
    and user_attributes."""
    items: pl.DataFrame
    """And item_id, the features of items and item_share."""
    everything: pl.DataFrame
    """And the features of all events. One row per decision."""


@dataclass(frozen=True)
class Skew:
    """What a comparison found."""

    decisions: int
    compared: Mapping[str, int]
    """Feature → values compared."""
    differences: pl.DataFrame
    """Columns of `DIFFERENCES`."""

    @property
    def values(self) -> int:
        """Values compared."""
        return sum(self.compared.values())

    def figures(self) -> dict[str, float]:
        """For a report."""
        found = dict(self.differences.group_by("feature").len().iter_rows())
        return {
            "decisions": self.decisions,
            "values": self.values,
            "differences": self.differences.height,
            **{f"compared/{feature}": count for feature, count in self.compared.items()},
            **{f"differences/{feature}": found.get(feature, 0) for feature in self.compared},
        }


def find_skew(dataset: Dataset, appended: pl.DataFrame, views: Sequence[FeatureView], logged: LoggedReads) -> Skew:
    """Compute every logged feature again from the data set and the events appended to the online store since."""
    past = _Past(dataset, appended, tuple(views))
    everything = past.of_everything(logged.everything)
    by_decision = logged.everything.select(DECISION_ID).hstack(everything)
    parts = [
        _Comparison(EVERYTHING, logged.everything, everything),
        _Comparison(USER, logged.users, past.of_users(logged.users)),
        _Comparison(ITEM, logged.items, past.of_items(logged.items, by_decision)),
    ]
    loose = {name for view in views for name, each in view.features.items() if isinstance(each, RecencyWeighted)}
    return Skew(
        decisions=logged.everything.height,
        compared={name: part.logged.height for part in parts for name in part.offline.columns},
        differences=pl.concat([part.differences(loose) for part in parts]),
    )


@dataclass(frozen=True)
class _Past:
    """All events, looked at bucket by bucket."""

    dataset: Dataset
    appended: pl.DataFrame
    views: tuple[FeatureView, ...]

    def of_everything(self, reads: pl.DataFrame) -> pl.DataFrame:
        """Features of all events, a row per read."""
        views = views_of(EVERYTHING, self.views)
        columns = sorted({column for view in views for name in view.features for column in view.lineage(name)})
        buckets = [self.dataset.bucket(USER, bucket, columns) for bucket in range(self.dataset.manifest.buckets)]
        events = pl.concat([*buckets, self.appended.select(columns)])
        return replay(views, events, reads.select(EVENT_TIME, KNOWN_UNTIL).with_row_index(READ)).drop(READ)

    def of_items(self, reads: pl.DataFrame, everything: pl.DataFrame) -> pl.DataFrame:
        """Item features, a row per read. `everything`: features of all events by decision."""
        found = self._by_bucket(ITEM, reads)
        counted = reads.join(everything, on=DECISION_ID, how="left", maintain_order="left").select(COUNTED_EVENTS)
        return with_item_share(found.hstack(counted)).drop(COUNTED_EVENTS)

    def of_users(self, reads: pl.DataFrame) -> pl.DataFrame:
        """User features and attributes, a row per read."""
        came_with = reads.select(USER_ID, BROUGHT_ITEMS, BROUGHT_VALUE, EVENT_TIME).with_row_index(READ)
        brought = [
            brought_events(user, items, value, at).with_columns(pl.lit(read, pl.UInt32).alias(READ))
            for read, user, items, value, at in came_with.iter_rows()
            if items
        ]
        found = self._by_bucket(USER, reads, pl.concat(brought) if brought else None)
        return found.hstack([self._attributes(reads)])

    def _attributes(self, reads: pl.DataFrame) -> pl.Series:
        described = self.dataset.users().select(USER_ID, pl.col(ATTRIBUTES).alias(USER_ATTRIBUTES))
        joined = reads.select(USER_ID).join(described, on=USER_ID, how="left", maintain_order="left")
        return joined.get_column(USER_ATTRIBUTES).fill_null([])

    def _by_bucket(self, entity: Entity, reads: pl.DataFrame, brought: pl.DataFrame | None = None) -> pl.DataFrame:
        """The features of reads, in order; one bucket of events in memory at a time."""
        assert entity.key is not None
        buckets = self.dataset.manifest.buckets
        asked = reads.select(entity.key, EVENT_TIME, KNOWN_UNTIL).with_row_index(READ)
        appended = split_by_bucket(self.appended, entity.key, buckets)
        parts = []
        for bucket, part in split_by_bucket(asked, entity.key, buckets).items():
            stored = self.dataset.bucket(entity, bucket, EVENTS.names)
            late = appended.get(bucket, self.appended.clear())
            asked_for = pl.col(entity.key).is_in(part.get_column(entity.key).to_list())
            events = pl.concat([stored, late.select(EVENTS.names)]).filter(asked_for)
            parts.append(replay(views_of(entity, self.views), events, part, brought))
        nothing = replay(views_of(entity, self.views), self.appended.clear(), asked.clear())
        return pl.concat([nothing, *parts]).sort(READ).drop(READ)


@dataclass(frozen=True)
class _Comparison:
    """What was logged of one entity, beside what was computed of it."""

    entity: Entity
    logged: pl.DataFrame
    offline: pl.DataFrame

    def differences(self, loose: Collection[str]) -> pl.DataFrame:
        """Where both differ; features in `loose` by more than rounding."""
        return pl.concat(
            [DIFFERENCES.to_frame(), *(self._differences(name, name in loose) for name in self.offline.columns)]
        )

    def _differences(self, feature: str, is_loose: bool) -> pl.DataFrame:
        online, offline = self.logged.get_column(feature), self.offline.get_column(feature)
        pair = pl.DataFrame({"online": online.cast(offline.dtype), "offline": offline})
        differs = pl.col("online").ne_missing(pl.col("offline"))
        if is_loose:
            apart = (pl.col("online") - pl.col("offline")).abs()
            differs &= ~(apart <= FLOAT32_PRECISION * pl.col("offline").abs()).fill_null(value=False)
        rows = pair.select(differs).to_series().arg_true()
        ids = self.logged.get_column(self.entity.key).gather(rows) if self.entity.key else [""] * len(rows)
        return pl.DataFrame(
            {
                DECISION_ID: self.logged.get_column(DECISION_ID).gather(rows),
                "entity": [self.entity.name] * len(rows),
                "id": ids,
                "feature": [feature] * len(rows),
                "online": [repr(value) for value in pair.get_column("online").gather(rows).to_list()],
                "offline": [repr(value) for value in pair.get_column("offline").gather(rows).to_list()],
            },
            schema=DIFFERENCES,
        )
