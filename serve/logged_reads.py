"""From logged decisions to what `data.checks.skew` compares: a seeded sample of them, as tables of reads."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from data.checks.replay import KNOWN_UNTIL
from data.checks.skew import LoggedReads
from data.features import TIME
from data.online.brought import BROUGHT_ITEMS, BROUGHT_VALUE
from data.schema import DECISION_ID, EVENT_TIME, ITEM_ID, ITEM_SHARE, USER_ATTRIBUTES, USER_ID
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView, views_of
from serve.decisions import Decision, StoreVersion, read_lines

TOKENS = pl.List(pl.String)


class _Header(BaseModel):
    """As much of a decision as tells whether it can be checked."""

    model_config = ConfigDict(extra="ignore")

    kind: Literal["recommend", "similar"]
    store: StoreVersion | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Some logged decisions."""

    decisions: tuple[Decision, ...]
    logged: int
    """How many there were to draw from."""
    skipped: Mapping[str, int]
    """Why others cannot be checked → how many."""


def sample_decisions(folder: Path, size: int, seed: int, store: StoreVersion) -> Sample:
    """Draw decisions that were made from this version of a store; every subset of `size` is equally likely.

    Goes through the log line by line and keeps no more than the sample (Vitter 1985, algorithm R).
    """
    draw, kept, skipped, logged = random.Random(seed), list[bytes](), Counter[str](), 0
    for line in read_lines(folder):
        reason = _reason_to_skip(_Header.model_validate_json(line), store)
        if reason is not None:
            skipped[reason] += 1
            continue
        logged += 1
        if len(kept) < size:
            kept.append(line)
        elif (place := draw.randrange(logged)) < size:
            kept[place] = line
    return Sample(tuple(map(Decision.model_validate_json, kept)), logged, dict(skipped))


def _reason_to_skip(header: _Header, store: StoreVersion) -> str | None:
    """Why a decision cannot be checked, if it cannot."""
    if header.kind == "similar":
        return "similar items: made without features"
    if "ranking" in header.degraded:
        return "ranking was skipped: made without item features"
    if header.store is None:
        return "the online store was published anew at that moment, or not named yet"
    if header.store.data_version != store.data_version:
        return f"made from data version {header.store.data_version[:12]}"
    for view, fingerprint in store.fingerprints.items():
        if header.store.fingerprints.get(view) != fingerprint:
            return f"made from feature view {view} by definition {header.store.fingerprints.get(view)}"
    return None


def logged_reads(decisions: Sequence[Decision], views: Sequence[FeatureView]) -> LoggedReads:
    """What the decisions were made from, as tables."""
    users = [_one(each, each.user_features) for each in decisions]
    everything = [_one(each, each.everything) for each in decisions]
    items = [_many(each, each.candidates) for each in decisions]
    return LoggedReads(
        users=_table(users, _schema(USER, views)),
        items=_table(items, _schema(ITEM, views)),
        everything=_table(everything, _schema(EVERYTHING, views)),
    )


def _schema(entity: Entity, views: Sequence[FeatureView]) -> dict[str, pl.DataType]:
    extra: dict[str, dict[str, pl.DataType]] = {
        USER.name: {USER_ID: pl.String(), BROUGHT_ITEMS: TOKENS, BROUGHT_VALUE: pl.Float32(), USER_ATTRIBUTES: TOKENS},
        ITEM.name: {ITEM_ID: pl.String(), ITEM_SHARE: pl.Float32()},
        EVERYTHING.name: {},
    }
    features = {name: kind for view in views_of(entity, tuple(views)) for name, kind in view.schema().items()}
    return {DECISION_ID: pl.String(), EVENT_TIME: TIME, KNOWN_UNTIL: TIME} | extra[entity.name] | features


def _one(decision: Decision, row: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    return _many(decision, {name: [value] for name, value in row.items()})


def _many(decision: Decision, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    count = len(columns[KNOWN_UNTIL])
    return {**columns, DECISION_ID: [decision.decision_id] * count, EVENT_TIME: [decision.at] * count}


def _table(parts: Sequence[Mapping[str, Sequence[Any]]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Columns one after the other, in the types of the schema; JSON has moments as text."""
    return pl.DataFrame(
        {name: [_value(value, kind) for part in parts for value in part[name]] for name, kind in schema.items()},
        schema=schema,
    )


def _value(value: Any, kind: pl.DataType) -> Any:
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Datetime):
        return [datetime.fromisoformat(each) for each in value]
    if isinstance(kind, pl.Datetime) and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value
