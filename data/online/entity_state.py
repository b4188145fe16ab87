"""One packed value per entity for all its features: what does not go stale by itself, finished when it is read.

    states = EntityStates(USER, views)
    anna = states.apply({"anna": None}, events)["anna"]
    states.numbers([anna.value], now)

Applying events one by one, in batches or in any order gives the same features, and they equal those that
`data.temporal.point_in_time` computes from all the events at any moment that is not before the newest of them. A read
at an earlier moment is answered as of the newest event: a state does not remember what it was before.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from data.online.states.layout import MICROSECOND, NEVER_US, StateLayout
from data.online.states.packed import Packed
from data.online.states.reading import Reader
from data.online.states.recents import OWNER
from data.online.states.update import State, Update
from data.views import EVENT_TYPES, Entity, FeatureView

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KNOWN = "known"
KNOWN_UNTIL = "known_until"

THE_ONLY_ID = ""
"""The id of EVERYTHING."""


class EntityStates:
    """The states of all entities of one kind under some definitions."""

    def __init__(self, entity: Entity, views: Sequence[FeatureView]) -> None:
        self.entity = entity
        self.layout = StateLayout(entity, views)
        self._reader = Reader(self.layout)

    @cached_property
    def scalar_features(self) -> tuple[str, ...]:
        """The columns of `numbers`."""
        return tuple(feature for _, feature in self.layout.numbers)

    @cached_property
    def lifetime(self) -> timedelta | None:
        """How long after its last change a state may be forgotten with no feature ever differing; None if never."""
        return self.layout.lifetime

    def apply(self, old: Mapping[str, State | None], events: pl.DataFrame) -> dict[str, State]:
        """The new states of the entities in `old`, to which all `events` (columns of the contract) belong.

        Each event must be applied once. Deterministic: the same events give the same bytes.
        """
        return self.merge({entity_id: [] if state is None else [state] for entity_id, state in old.items()}, events)

    def merge(self, old: Mapping[str, Sequence[State]], events: pl.DataFrame) -> dict[str, State]:
        """As `apply`, where an entity's events so far may be shared among several states."""
        codes = {entity_id: code for code, entity_id in enumerate(old)}
        states = [state for parts in old.values() for state in parts]
        owners = [code for code, parts in enumerate(old.values()) for _ in parts]
        key = self.entity.key
        column = [0] * events.height if key is None else list(map(codes.__getitem__, events.get_column(key)))
        owned = events.with_columns(pl.Series(OWNER, column, dtype=pl.Int64))
        return dict(zip(old, Update(self.layout, len(codes), states, owners, owned).states(), strict=True))

    def ids_of(self, events: pl.DataFrame) -> list[str]:
        """The entities that events belong to."""
        if self.entity.key is None:
            return [THE_ONLY_ID] if events.height else []
        return events.get_column(self.entity.key).unique(maintain_order=True).to_list()

    def numbers(self, values: Sequence[bytes | None], at: datetime) -> npt.NDArray[np.float64]:
        """The scalar features (values, `scalar_features`) as of a moment; defaults where there is no value."""
        if not values:
            return np.empty((0, len(self.scalar_features)))
        return self._reader.numbers([value or self._nothing for value in values], _micros(at))

    def frame(self, values: Sequence[bytes | None], at: datetime) -> pl.DataFrame:
        """All features in their own types, `known` and `known_until`, as of a moment."""
        packed = self._packed(values or [None])
        is_known = packed.known_until != NEVER_US
        known_until = pl.Series(KNOWN_UNTIL, packed.known_until)
        if not is_known.all():
            known_until = known_until.set(pl.Series(~is_known), None)
        columns = self._reader.columns(packed, _micros(at))
        columns += [pl.Series(KNOWN, is_known), known_until.cast(pl.Datetime("us", "UTC"))]
        return pl.DataFrame(columns).head(len(values))

    def _packed(self, values: Sequence[bytes | None]) -> Packed:
        return Packed(self.layout, [value or self._nothing for value in values])

    @cached_property
    def _nothing(self) -> bytes:
        """The value of an entity without events."""
        (state,) = self.apply({THE_ONLY_ID: None}, pl.DataFrame(schema=EVENT_TYPES)).values()
        return state.value


def _micros(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND
