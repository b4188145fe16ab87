"""Feature views: what is computed about an entity, declared once, for batch and online.

    FeatureView(
        name="user_delight",
        entity=USER,
        description="How often a user was delighted lately",
        owner="recommendations",
        where=pl.col("value") >= 4,
        features={"user_delights_7d": Count(days(7)), "user_seconds_since_delight": TimeSince()},
    )

What is not a plain column of the events is a polars expression over one event (`columns`): no Python function runs per
row, and which columns feed what can be read off.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import polars as pl

from cluster.errors import TowerlineError
from data.aggregations import Aggregation, Count, LastN, Latest, Mean, Rate, RecencyWeighted, Sum, TimeSince
from data.schema import EVENTS, ITEM_ID, USER_ID

EVENT_TYPES = pl.DataFrame(EVENTS.empty_table()).schema


@dataclass(frozen=True)
class Entity:
    """What features are about: the events that share a value of `key`, or all events if it is None."""

    name: str
    key: str | None


USER = Entity("user", USER_ID)
ITEM = Entity("item", ITEM_ID)
EVERYTHING = Entity("everything", None)
ENTITIES = (USER, ITEM, EVERYTHING)


@dataclass(frozen=True, eq=False)
class FeatureView:
    """Features of one entity from one source. Raises TowerlineError for a column that is not there."""

    name: str
    entity: Entity
    features: Mapping[str, Aggregation]
    """Feature → how it is computed."""
    description: str
    owner: str
    """Who to ask."""
    source: str = "events"
    where: pl.Expr | None = None
    """Which events count; all if None. A null counts as no."""
    columns: Mapping[str, pl.Expr] = field(default_factory=dict)
    """The transformation: derived column → expression over one event."""
    ttl: timedelta | None = None
    """If the newest event is older than this, every feature has its default."""

    def __post_init__(self) -> None:
        for name, expression in {"where": self.where, **self.columns}.items():
            unknown = set() if expression is None else set(expression.meta.root_names()) - set(EVENT_TYPES)
            if unknown:
                raise TowerlineError(f"view {self.name!r}: {name} reads {min(unknown)!r}, which is no column of events")
        for feature in self.features:
            self._require_valid(feature)
        if self.ttl is not None and self.ttl <= timedelta():
            raise TowerlineError(f"view {self.name!r}: a time to live of {self.ttl} is not positive; None is for ever")

    def _require_valid(self, feature: str) -> None:
        where = f"feature {feature!r} of view {self.name!r}"
        if feature in EVENT_TYPES:
            raise TowerlineError(f"{where} is called like a column of events; give it another name")
        column = self.column_of(feature)
        if column is None:
            return
        if column not in self.columns and column not in EVENT_TYPES:
            known = ", ".join([*EVENT_TYPES, *self.columns])
            raise TowerlineError(f"{where}: no column {column!r} (there are: {known})")
        kind = self.type_of(column)
        if isinstance(self.features[feature], Sum | Mean | RecencyWeighted) and not _is_number(kind):
            raise TowerlineError(
                f"{where} adds up column {column!r}, which is {kind}; take a number, or count the events"
            )

    def column_of(self, feature: str) -> str | None:
        """The column that a feature aggregates; None if it only counts or times events."""
        aggregation = self.features[feature]
        return None if isinstance(aggregation, Count | Rate | TimeSince) else aggregation.of

    def dtype(self, feature: str) -> pl.DataType:
        """Type of a feature."""
        aggregation = self.features[feature]
        if isinstance(aggregation, Latest):
            return self.type_of(aggregation.of)
        if isinstance(aggregation, LastN):
            return pl.List(self.type_of(aggregation.of))
        return aggregation.dtype

    def schema(self) -> dict[str, pl.DataType]:
        """Feature → type, in order."""
        return {feature: self.dtype(feature) for feature in self.features}

    def is_scalar(self, feature: str) -> bool:
        """Whether a feature is one number."""
        return _is_number(self.dtype(feature))

    def lineage(self, feature: str) -> tuple[str, ...]:
        """The columns of the source that a feature is computed from, sorted."""
        column = self.column_of(feature)
        roots = {"event_time", "ingest_time", "source_row"} | ({self.entity.key} if self.entity.key else set())
        if column is not None:
            roots |= set(self.columns[column].meta.root_names()) if column in self.columns else {column}
        if self.where is not None:
            roots |= set(self.where.meta.root_names())
        return tuple(sorted(roots))

    def prepared(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events that count, with the derived columns."""
        chosen = events if self.where is None else events.filter(self.where)
        return chosen.with_columns(**self.columns) if self.columns else chosen

    def definition(self) -> dict[str, Any]:
        """All that decides the values, as plain data."""
        return {
            "name": self.name,
            "entity": self.entity.name,
            "source": self.source,
            "where": None if self.where is None else _written_out(self.where),
            "columns": {name: _written_out(expression) for name, expression in self.columns.items()},
            "ttl_s": None if self.ttl is None else self.ttl.total_seconds(),
            "features": {name: repr(aggregation) for name, aggregation in self.features.items()},
        }

    def fingerprint(self, code: str = "") -> str:
        """Hash of the definition and of `code`, the fingerprint of what computes it. Owner and description are free."""
        return hashlib.sha256(json.dumps([self.definition(), code], sort_keys=True).encode()).hexdigest()[:16]

    def type_of(self, column: str) -> pl.DataType:
        """Type of a column of the events or of a derived one."""
        if column in EVENT_TYPES and column not in self.columns:
            return EVENT_TYPES[column]
        return pl.DataFrame(schema=EVENT_TYPES).select(self.columns[column].alias(column)).schema[column]


def _is_number(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind == pl.Boolean


def _written_out(expression: pl.Expr) -> str:
    """An expression in full; as text, polars shortens long lists."""
    return f"{expression} {hashlib.sha256(expression.meta.serialize()).hexdigest()[:16]}"


def views_of(entity: Entity, views: tuple[FeatureView, ...]) -> tuple[FeatureView, ...]:
    """The views of one entity."""
    return tuple(view for view in views if view.entity == entity)
