"""The feature definitions that a store is opened with, and what its two kinds share."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster.errors import TowerlineError
from data.features import fingerprints_of
from data.fingerprints import fingerprint_of_modules
from data.online.entity_state import KNOWN, KNOWN_UNTIL, EntityStates
from data.online.states import layout, memory, packed, recents, tiles, update
from data.online.states.update import State
from data.views import ENTITIES, Entity, FeatureView


@functools.cache
def packing() -> str:
    """Hash of the code that makes packed values, and of what it takes from them to go on."""
    return fingerprint_of_modules(layout, memory, packed, recents, tiles, update)


class Definitions:
    """The views of all entities."""

    def __init__(self, views: Sequence[FeatureView]) -> None:
        self.views = tuple(views)
        self.states: Mapping[Entity, EntityStates] = {entity: EntityStates(entity, views) for entity in ENTITIES}

    def __reduce__(self) -> tuple[type["Definitions"], tuple[tuple[FeatureView, ...]]]:
        return Definitions, (self.views,)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the states depend on, the code that packs them included."""
        identities = [states.layout.identity for states in self.states.values()]
        described = [identities, self.fingerprints, packing()]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """View → its fingerprint."""
        return fingerprints_of(self.views)

    def frame(
        self,
        entity: Entity,
        ids: Sequence[str],
        values: Sequence[bytes | None],
        at: datetime,
        features: Sequence[str] | None,
    ) -> pl.DataFrame:
        """What `OnlineStore.read` returns."""
        frame = self.states[entity].frame(values, at)
        if features is not None:
            frame = frame.select(*features, KNOWN, KNOWN_UNTIL)
        return frame if entity.key is None else frame.insert_column(0, pl.Series(entity.key, ids, dtype=pl.String))

    def extended(
        self, entity: Entity, states: Mapping[int, State | None], extra: Mapping[int, pl.DataFrame]
    ) -> dict[int, bytes]:
        """The packed values of rows (by number) after further events of each, of which nobody else is told."""
        assert entity.key is not None
        own = [events.with_columns(pl.lit(str(row)).alias(entity.key)) for row, events in extra.items()]
        applied = self.states[entity].apply({str(row): states[row] for row in extra}, pl.concat(own))
        return {row: applied[str(row)].value for row in extra}

    def numbers(self, entity: Entity, values: Sequence[bytes | None], at: datetime) -> npt.NDArray[np.float64]:
        """What `OnlineStore.read_numbers` returns."""
        return self.states[entity].numbers(values, at)

    def require(self, published: Mapping[str, str], place: str) -> None:
        """Raises TowerlineError: only states of other definitions are published."""
        pairs = [
            f"{name} {published.get(name, 'missing')} there, {self.fingerprints.get(name, 'missing')} here"
            for name in sorted({*published, *self.fingerprints})
            if published.get(name) != self.fingerprints.get(name)
        ]
        raise TowerlineError(
            f"{place} holds features of other definitions ({'; '.join(pairs) or 'another packing of the states'}); "
            "publish the data set again with these, or run the code that published it"
        )
