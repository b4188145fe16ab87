"""Reading features from a store, whatever holds the packed values."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from data.online.states.update import State
from data.online.stores.definitions import Definitions
from data.views import Entity


class Reads(ABC):
    """The reading half of `data.online.store.OnlineStore`."""

    _definitions: Definitions

    @abstractmethod
    def values(self, entity: Entity, ids: Sequence[str]) -> list[bytes | None]:
        """The packed value of each id, None if there is none."""

    @abstractmethod
    def states(self, entity: Entity, ids: Sequence[str]) -> dict[str, State]:
        """The whole state of those that have one, with what only writers need."""

    def read(
        self,
        entity: Entity,
        ids: Sequence[str],
        at: datetime,
        features: Sequence[str] | None = None,
        extra: Mapping[int, pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """See `OnlineStore`; so for all methods."""
        if not extra:
            return self._definitions.frame(entity, ids, self.values(entity, ids), at, features)
        held = self.states(entity, list(dict.fromkeys(ids)))
        values = [held[each].value if each in held else None for each in ids]
        states = {row: held.get(ids[row]) for row in extra}
        for row, value in self._definitions.extended(entity, states, extra).items():
            values[row] = value
        return self._definitions.frame(entity, ids, values, at, features)

    def read_numbers(self, entity: Entity, ids: Sequence[str], at: datetime) -> npt.NDArray[np.float64]:
        """The fast path."""
        return self._definitions.numbers(entity, self.values(entity, ids), at)

    def scalar_features(self, entity: Entity) -> tuple[str, ...]:
        """The columns of `read_numbers`."""
        return self._definitions.states[entity].scalar_features
