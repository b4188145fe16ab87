"""Search over item vectors: exact, by one matrix product. See `train.approximate_index` for large catalogues."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from train.vocabulary import UNKNOWN

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Index(Protocol):
    """Maximum inner product over item vectors. Several threads may search."""

    vectors_ID: Floats
    """float32, the row is the item code; row `UNKNOWN` is never returned."""

    def search(self, queries_BD: Floats, count: int, exclude: Sequence[Codes] | None = None) -> tuple[Codes, Floats]:
        """The `count` best item codes (B, K) and their scores (B, K) for each query, best first; ties by item code.

        `exclude` holds, for each query, item codes not to return. K is `count` or the catalogue's size, whichever is
        smaller; where a query runs out of items the code is `UNKNOWN` and the score -inf.
        """
        ...

    def grown(self, vectors_ID: Floats) -> "Index":
        """The same search over more items: the first of `vectors_ID` are those that there are already."""
        ...


class ExactIndex:
    """Maximum inner product over all item vectors. Ties are broken by item code, so an answer is reproducible."""

    def __init__(self, vectors_ID: Floats) -> None:
        """`vectors_ID`: float32, the row is the item code; row `UNKNOWN` is never returned."""
        self.vectors_ID = vectors_ID

    def search(self, queries_BD: Floats, count: int, exclude: Sequence[Codes] | None = None) -> tuple[Codes, Floats]:
        """See `Index`."""
        return top_items(without(self.scores(queries_BD), exclude or ()), count)

    def grown(self, vectors_ID: Floats) -> "ExactIndex":
        """See `Index`."""
        return ExactIndex(vectors_ID)

    def scores(self, queries_BD: Floats) -> Floats:
        """The inner products (B, I) of each query with every item vector."""
        scores_BI: Floats = queries_BD @ self.vectors_ID.T
        return scores_BI


def without(scores_BI: Floats, exclude: Sequence[Codes]) -> Floats:
    """In place: -inf for `UNKNOWN` and, in each of the first rows, for the item codes that `exclude` holds for it."""
    scores_BI[:, UNKNOWN] = -np.inf
    for scores_I, codes in zip(scores_BI, exclude, strict=False):
        scores_I[codes] = -np.inf
    return scores_BI


def top_items(scores_BI: Floats, count: int) -> tuple[Codes, Floats]:
    """The `count` highest-scored item codes and scores (B, K) of each row, ties by code; -inf is never returned."""
    count = min(count, scores_BI.shape[1] - 1)
    threshold_B1 = np.partition(scores_BI, -count, axis=1)[:, -count][:, np.newaxis]
    codes_BK = np.empty((len(scores_BI), count), dtype=np.int64)
    for row, (scores_I, above_I) in enumerate(zip(scores_BI, scores_BI >= threshold_B1, strict=True)):
        codes = np.flatnonzero(above_I)
        codes_BK[row] = codes[np.argsort(-scores_I[codes], kind="stable")[:count]]
    scores_BK = np.take_along_axis(scores_BI, codes_BK, axis=1)
    return np.where(np.isneginf(scores_BK), UNKNOWN, codes_BK), scores_BK


def overlap(expected_BK: Codes, found_BK: Codes) -> float:
    """Mean share of the items of a list that are in the other list of the same user; lists without any do not count."""
    shares = [
        np.isin(expected[expected != UNKNOWN], found).mean()
        for expected, found in zip(expected_BK, found_BK, strict=True)
        if (expected != UNKNOWN).any()
    ]
    return float(np.mean(shares))
