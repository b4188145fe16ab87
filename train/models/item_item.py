"""Items whose users are those of the items in the history: item-item collaborative filtering.

Sarwar et al., "Item-based collaborative filtering recommendation algorithms" (WWW 2001), with the K nearest neighbours
of each item only, so that neither time nor memory grows with the square of the catalogue.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import polars as pl
import scipy.sparse
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from train.index import Codes, Floats
from train.models.catalogue_scorer import CatalogueScorer
from train.models.interactions import histories, interactions
from train.vocabulary import Vocabulary

PAIRS_AT_ONCE = 2**23
"""Pairs of items that are looked at at a time, at most: about 200 MB."""


class ItemItemConfig(BaseModel):
    """What makes items alike and which of a history's items count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["item_item"] = "item_item"
    neighbours: PositiveInt = 50
    """Items that each item in a history vouches for, the most similar ones."""
    shrinkage: NonNegativeFloat = 5.0
    """Added to the denominator of the cosine, so that two items that share one user are not twins."""
    history_half_life: PositiveFloat | None = 2.0
    """An event of the history that is so many events older than another has half its weight; none: all the same."""
    events_per_user: PositiveInt = 2000
    """Of a user who met more items, only so many, the last met, are learnt from: pairs grow with the square."""


class ItemItem(CatalogueScorer[ItemItemConfig]):
    """Scores are sums of similarities to the items in the history."""

    def __init__(self, config: ItemItemConfig | None = None) -> None:
        super().__init__(config or ItemItemConfig())
        self._similarity_II = scipy.sparse.csr_array((0, 0), dtype=np.float32)

    @classmethod
    def config_kind(cls) -> type[ItemItemConfig]:
        """The class of `config`."""
        return ItemItemConfig

    def learn(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Find the neighbours of each item."""
        met_UI = interactions(events, vocabulary, self.config.events_per_user)
        self._similarity_II = nearest(met_UI, self.config.neighbours, self.config.shrinkage)

    def scores(self, rows: pl.DataFrame) -> Floats:
        """Weighted sums of similarities to the history (B, I + 1); 0 where no item of it vouches."""
        history_BI = histories(rows, self.vocabulary, self.config.history_half_life)
        scores_BI: Floats = (history_BI @ self._similarity_II).toarray()
        return scores_BI

    def similarities(self, items: Codes) -> Floats:
        """Similarities of the neighbours (N, I + 1); -inf elsewhere."""
        similarity_NI: Floats = self._similarity_II[items].toarray()
        similarity_NI[similarity_NI == 0] = -np.inf
        return similarity_NI

    def weights(self) -> dict[str, Tensor]:
        """The sparse matrix of similarities."""
        matrix = self._similarity_II
        return {
            "data": torch.from_numpy(matrix.data),
            "indices": torch.from_numpy(matrix.indices.astype(np.int32)),
            "indptr": torch.from_numpy(matrix.indptr.astype(np.int64)),
        }

    def take(self, weights: dict[str, Tensor]) -> None:
        """Become what `weights` was called on."""
        data, indices, indptr = (weights[name].numpy() for name in ("data", "indices", "indptr"))
        size = len(indptr) - 1
        self._similarity_II = scipy.sparse.csr_array((data, indices, indptr), shape=(size, size))


def nearest(met_UI: scipy.sparse.csr_array, neighbours: int, shrinkage: float) -> scipy.sparse.csr_array:
    """The similarities (I, I) of each item, by row, to the items most like it; ties by item code.

    `met_UI`: 1 where a user met an item. Two items' similarity is the number of users they share over the geometric
    mean of their numbers of users plus `shrinkage`: without it, the cosine.
    """
    met_IU = scipy.sparse.csr_array(met_UI.T)
    size_I = np.diff(met_IU.indptr).astype(np.float64)
    pairs_I = np.minimum(met_IU @ np.diff(met_UI.indptr), met_UI.shape[1])
    kept = []
    for block in _blocks(pairs_I):
        shared = scipy.sparse.coo_array(met_IU[block] @ met_UI)
        row, column = shared.row + block.start, shared.col
        values = (shared.data / (np.sqrt(size_I[row] * size_I[column]) + shrinkage)).astype(np.float32)
        values[row == column] = 0
        best_first = np.lexsort((column, -values, row))
        row, column, values = row[best_first], column[best_first], values[best_first]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        near = (place < neighbours) & (values > 0)
        kept.append((values[near], row[near], column[near]))
    values, rows, columns = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    shape = (met_UI.shape[1], met_UI.shape[1])
    return scipy.sparse.csr_array((values, (rows, columns)), shape=shape)


def _blocks(pairs_I: Floats) -> Iterator[slice]:
    """Runs of items of which each has at most `PAIRS_AT_ONCE` pairs, or is one item."""
    start, pairs = 0, 0.0
    for item, number in enumerate(pairs_I):
        if item > start and pairs + number > PAIRS_AT_ONCE:
            yield slice(start, item)
            start, pairs = item, 0.0
        pairs += number
    yield slice(start, len(pairs_I))
