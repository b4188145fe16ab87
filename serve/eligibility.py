"""Which items a request may be answered with: not seen, available, allowed, not denied, and within the rules."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from cluster.errors import TowerlineError
from serve.batch import Batch, Call, Codes
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN

AVAILABLE_FROM = "available_from"
AVAILABLE_UNTIL = "available_until"
"""Attributes of an item: ISO 8601 dates or times, UTC where they name no zone. It is recommended from the one on and
before the other."""


class RulesConfig(BaseModel):
    """What may be recommended. Attributes and values are those of the items' `name=value` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] = ()
    """Ids of the only items to recommend, if there are any here."""

    deny: tuple[str, ...] = ()
    """Ids of items never to recommend."""

    require: Mapping[str, tuple[str, ...]] = {}
    """Attribute to values: an item needs one of them."""

    exclude: Mapping[str, tuple[str, ...]] = {}
    """Attribute to values: an item must have none of them."""

    max_per_value: Mapping[str, PositiveInt] = {}
    """Attribute to the most items of one answer that may have the same value of it."""


class Eligibility:
    """The rules over one catalogue."""

    def __init__(self, catalogue: Catalogue, rules: RulesConfig) -> None:
        """Raises TowerlineError for an item whose availability cannot be read."""
        self._catalogue = catalogue
        self._size = len(catalogue)
        self.limited = bool(rules.max_per_value)
        """Whether how many items of a kind are in an answer counts."""
        codes = range(1, self._size + 1)
        self._barred = np.array([code for code in codes if self._is_barred(code, rules)], np.int64)
        self._windows = [(code, *window) for code in codes if (window := _window(catalogue, code)) is not None]

    def candidates(self, wanted: int) -> int:
        """How many of the eligible items to retrieve so that `wanted` are left: all, where their kinds count."""
        return self._size if self.limited else wanted

    def width(self, batch: Batch, candidates: int) -> int:
        """How many items to retrieve so that `candidates` are left of each row, where the catalogue has them."""
        if self.limited:
            return self._size
        return candidates + max(map(len, self.excluded(batch)), default=0)

    def excluded(self, batch: Batch) -> list[Codes]:
        """Per request, the codes of the items that must not be in its answer."""
        closed = [code for code, begin, end in self._windows if not begin <= batch.at < end]
        barred = np.union1d(self._barred, np.array(closed, np.int64)) if closed else self._barred
        return [self._of_request(call, seen, barred) for call, seen in zip(batch.calls, batch.seen, strict=True)]

    def _of_request(self, call: Call, seen: frozenset[str], barred: Codes) -> Codes:
        own = np.concatenate([barred, self._catalogue.codes([*seen, *call.deny])])
        if call.allow is None:
            return own
        open_I = np.zeros(self._size + 1, np.bool_)
        open_I[self._catalogue.codes(call.allow)] = True
        open_I[own] = False
        return np.flatnonzero(~open_I)[1:]

    def _is_barred(self, code: int, rules: RulesConfig) -> bool:
        item = self._catalogue.item_id(code)
        if item in rules.deny or (rules.allow and item not in rules.allow):
            return True
        tokens = set(self._catalogue.attributes(code))
        missed = any(tokens.isdisjoint(_tokens(name, values)) for name, values in rules.require.items())
        return missed or any(not tokens.isdisjoint(_tokens(name, values)) for name, values in rules.exclude.items())


class ValueLimits:
    """At most so many items with the same value of an attribute, greedily from the best item on."""

    def __init__(self, catalogue: Catalogue, most: Mapping[str, int]) -> None:
        self._catalogue = catalogue
        self._most = most

    def kept(self, codes_K: Codes) -> NDArray[np.bool_]:
        """Which of the items (K, best first) can be in one answer. Empty slots cannot."""
        counts: dict[str, int] = {}
        kept_K = np.zeros(len(codes_K), np.bool_)
        for place, code in enumerate(codes_K.tolist()):
            tokens = [] if code == UNKNOWN else self._limited(code)
            if code != UNKNOWN and all(counts.get(token, 0) < self._most[_name(token)] for token in tokens):
                kept_K[place] = True
                counts.update({token: counts.get(token, 0) + 1 for token in tokens})
        return kept_K

    def _limited(self, code: int) -> list[str]:
        return [token for token in set(self._catalogue.attributes(code)) if _name(token) in self._most]


def _name(token: str) -> str:
    return token.partition("=")[0]


def _tokens(name: str, values: Sequence[str]) -> set[str]:
    return {f"{name}={value}" for value in values}


def _window(catalogue: Catalogue, code: int) -> tuple[datetime, datetime] | None:
    """From when to when an item is available, if it says so."""
    bounds = dict(token.split("=", 1) for token in catalogue.attributes(code) if "=" in token)
    if AVAILABLE_FROM not in bounds and AVAILABLE_UNTIL not in bounds:
        return None
    item = catalogue.item_id(code)
    begin = _moment(item, AVAILABLE_FROM, bounds) if AVAILABLE_FROM in bounds else datetime.min.replace(tzinfo=UTC)
    end = _moment(item, AVAILABLE_UNTIL, bounds) if AVAILABLE_UNTIL in bounds else datetime.max.replace(tzinfo=UTC)
    return begin, end


def _moment(item: str, name: str, bounds: Mapping[str, str]) -> datetime:
    try:
        moment = datetime.fromisoformat(bounds[name])
    except ValueError as error:
        raise TowerlineError(
            f"item {item!r}: attribute {name} is {bounds[name]!r}, expected an ISO 8601 date such as 2024-05-01; "
            "correct the items and ingest them again"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
