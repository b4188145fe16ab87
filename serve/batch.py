"""What travels through the graph: the requests that were waiting at one moment, answered together.

A batch is columnar, so that every stage works on whole arrays. Shape suffixes: B requests, K candidates each. Stages
return a new batch with their columns filled in; a remote stage receives the batch and sends it back in one call.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Floats = NDArray[np.float32]

T = TypeVar("T")
N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Call:
    """One request for recommendations."""

    decision_id: str
    user_id: str
    count: int
    recent_items: tuple[str, ...] = ()
    explain: bool = False
    allow: tuple[str, ...] | None = None
    """The only items to answer with, if it names any."""
    deny: tuple[str, ...] = ()
    """Items not to answer with."""
    budget_s: float | None = None
    """Seconds that it has from its arrival to its answer, if it says so itself."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be said about one item recommended to one user."""

    code: int
    item: str
    """Title, or id where there is none."""
    chosen: tuple[str, ...]
    """Items from the user's history that are most like it."""
    traits: tuple[str, ...]
    """Attributes that it shares with all of `chosen`; its own if there are none chosen."""
    people: int
    """How many events it has."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What may be said of a cold user, and whose names are judged by it."""

    attributes: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    """Names of items that the user liked, newest first."""
    candidates: tuple[str, ...] = ()
    """Names of the first candidates, best first."""


def _no_codes() -> Codes:
    return np.empty((0, 0), np.int64)


def _no_scores() -> Floats:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests and what the stages have found out about them so far."""

    calls: tuple[Call, ...]
    at: datetime
    """The moment (UTC) as of which the batch is answered."""

    data_version: str | None = None
    """Of the data set behind all features; None if another one was published while they were read."""

    users: pl.DataFrame = field(default_factory=pl.DataFrame)
    """B rows (by the features stage): the user features, up to when the store knew of the user (`known_until`), and
    which of the request's recent items count (`brought_items`)."""

    everything: Mapping[str, Any] = field(default_factory=dict)
    """The features of all events together, and `known_until` (by the features stage)."""

    known: tuple[bool, ...] = ()
    """Per request, whether anything is stored about its user."""

    seen: tuple[frozenset[str], ...] = ()
    """Per request, the ids of the items the user has had to do with."""

    codes_BK: Codes = field(default_factory=_no_codes)
    """Candidates; best first; `UNKNOWN` in a slot that holds nothing (the catalogue is used up)."""

    retrieval_BK: Floats = field(default_factory=_no_scores)
    """The candidates' retrieval scores."""

    sources_BKS: Floats | None = None
    """What each of S sources thinks of the candidates, in units of its own; None where none was asked, and once they
    are ranked."""

    named_by: tuple[Mapping[str, int], ...] = ()
    """Per request, how many of the candidates each source named."""

    scores_BK: Floats = field(default_factory=_no_scores)
    """The candidates' ranking scores."""

    item_features: pl.DataFrame = field(default_factory=pl.DataFrame)
    """B x K rows in the order of `codes_BK`: the candidates' item features and `known_until`."""

    profiles: tuple[Profile, ...] = ()
    """Per request, what the language model re-ranks by; only where it does (by the profile stage)."""

    facts: tuple[tuple[Facts, ...], ...] = ()
    """Per request, the facts about its first items (by the facts stage)."""

    explanations: tuple[Mapping[int, str], ...] = ()
    """Per request, item code to sentence."""

    budget_s: float = math.inf
    """Seconds that the caller of a remote stage waits for it from now on."""

    degraded: tuple[str, ...] = ()
    """Stages that were skipped, or replaced by their fallback."""

    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.calls)

    def reordered(self, order_BK: Codes) -> "Batch":
        """The batch with the candidates of each row in another order."""
        return dataclasses.replace(
            self,
            codes_BK=np.take_along_axis(self.codes_BK, order_BK, axis=1),
            retrieval_BK=np.take_along_axis(self.retrieval_BK, order_BK, axis=1),
            scores_BK=np.take_along_axis(self.scores_BK, order_BK, axis=1),
            item_features=(
                self.item_features[_row_numbers(order_BK)] if self.item_features.height else self.item_features
            ),
        )

    def select(self, rows: Sequence[int]) -> "Batch":
        """The batch of some of its requests."""
        if len(rows) == 1:
            return self._slice(rows[0])
        width = self.codes_BK.shape[1]
        flat = (np.asarray(rows, np.int64)[:, None] * width + np.arange(width)).ravel()
        return dataclasses.replace(
            self,
            calls=_pick(self.calls, rows),
            users=self.users[list(rows)] if self.users.height else self.users,
            known=_pick(self.known, rows),
            seen=_pick(self.seen, rows),
            codes_BK=_pick_rows(self.codes_BK, rows),
            retrieval_BK=_pick_rows(self.retrieval_BK, rows),
            sources_BKS=None if self.sources_BKS is None else _pick_rows(self.sources_BKS, rows),
            named_by=_pick(self.named_by, rows),
            scores_BK=_pick_rows(self.scores_BK, rows),
            item_features=self.item_features[flat] if self.item_features.height else self.item_features,
            profiles=_pick(self.profiles, rows),
            facts=_pick(self.facts, rows),
            explanations=_pick(self.explanations, rows),
        )

    def _slice(self, row: int) -> "Batch":
        """The batch of one request. Nothing of its tables and arrays is copied."""
        width = self.codes_BK.shape[1]
        own = slice(row, row + 1)
        return dataclasses.replace(
            self,
            calls=self.calls[own],
            users=self.users.slice(row, 1),
            known=self.known[own],
            seen=self.seen[own],
            codes_BK=self.codes_BK[own],
            retrieval_BK=self.retrieval_BK[own],
            sources_BKS=None if self.sources_BKS is None else self.sources_BKS[own],
            named_by=self.named_by[own],
            scores_BK=self.scores_BK[own],
            item_features=self.item_features.slice(row * width, width),
            profiles=self.profiles[own],
            facts=self.facts[own],
            explanations=self.explanations[own],
        )


def _row_numbers(order_BK: Codes) -> Codes:
    """Places within rows of K as row numbers (B x K) of a table."""
    rows, width = order_BK.shape
    numbers: Codes = (order_BK + width * np.arange(rows)[:, None]).ravel()
    return numbers


def _pick(column: tuple[T, ...], rows: Sequence[int]) -> tuple[T, ...]:
    return tuple(column[row] for row in rows) if column else column


def _pick_rows(column: NDArray[N], rows: Sequence[int]) -> NDArray[N]:
    return column[list(rows)] if column.size else column


def without(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    """The other columns. `DataFrame.drop` runs a whole query for it, which a request would notice."""
    return pl.DataFrame([column for column in frame.get_columns() if column.name not in names])


class Stage(Protocol):
    """One step of the graph: a plain class over a batch. It may run in the gateway or in a deployment of its own."""

    def run(self, batch: Batch) -> Batch:
        """The batch with this stage's columns filled in."""
        ...
