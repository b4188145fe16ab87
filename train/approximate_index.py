"""Approximate search over item vectors by faiss: an inverted file of clusters, of which the nearest are looked into."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np

from train.index import Codes, ExactIndex, Floats
from train.vocabulary import UNKNOWN

ITEMS_PER_CLUSTER = 64
"""At least, and as many are clustered by k-means: with fewer than 39 it has too little to learn from."""
ITERATIONS = 10
"""Of k-means."""
MOST_FETCHED = 8
"""If a query needs more than one in so many items, because most of them are excluded, all are looked at."""


class FaissIndex:
    """Maximum inner product over the clusters nearest to a query. Items that came later are all looked at (`grown`).

    A query that would get fewer items than there are for it is answered exactly.
    """

    def __init__(self, vectors_ID: Floats) -> None:
        """Cluster the items. `vectors_ID`: float32, the row is the item code; row `UNKNOWN` is never returned."""
        import faiss

        self.vectors_ID = vectors_ID
        items_ID = np.ascontiguousarray(vectors_ID[UNKNOWN + 1 :])
        self.clusters = max(1, min(4 * isqrt(len(items_ID)), len(items_ID) // ITEMS_PER_CLUSTER))
        self.probes = 1
        """Clusters that are looked into for a query."""
        quantizer = faiss.IndexFlatIP(items_ID.shape[1])
        self._built: Any = faiss.IndexIVFFlat(quantizer, items_ID.shape[1], self.clusters, faiss.METRIC_INNER_PRODUCT)
        self._built.cp.niter = ITERATIONS
        self._built.cp.max_points_per_centroid = ITEMS_PER_CLUSTER
        self._built.train(items_ID)
        self._built.add(items_ID)

    def search(self, queries_BD: Floats, count: int, exclude: Sequence[Codes] | None = None) -> tuple[Codes, Floats]:
        """See `train.index.Index`."""
        import faiss

        exclude = exclude or [np.empty(0, np.int64)] * len(queries_BD)
        count = min(count, len(self.vectors_ID) - 1)
        fetched = count + max(map(len, exclude), default=0)
        if fetched * MOST_FETCHED > self._built.ntotal:
            return ExactIndex(self.vectors_ID).search(queries_BD, count, exclude)
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = self.probes
        scores_BF, places_BF = self._built.search(np.ascontiguousarray(queries_BD), fetched, params=parameters)
        later = slice(self._built.ntotal + 1, len(self.vectors_ID))
        codes_BF = np.hstack([places_BF + 1, np.tile(np.arange(later.start, later.stop), (len(queries_BD), 1))])
        scores_BF = np.hstack([scores_BF, queries_BD @ self.vectors_ID[later].T])
        codes_BK, scores_BK = _best(codes_BF, scores_BF, count, exclude)
        if (short_S := np.flatnonzero((codes_BK == UNKNOWN).any(axis=1))).size:
            of_short = [exclude[row] for row in short_S.tolist()]
            found = ExactIndex(self.vectors_ID).search(queries_BD[short_S], count, of_short)
            codes_BK[short_S], scores_BK[short_S] = found
        return codes_BK, scores_BK

    def grown(self, vectors_ID: Floats) -> "FaissIndex":
        """See `train.index.Index`. The clusters stay as they are, and are shared."""
        other = object.__new__(FaissIndex)
        vars(other).update(vars(self), vectors_ID=vectors_ID)
        return other


def _best(codes_BF: Codes, scores_BF: Floats, count: int, exclude: Sequence[Codes]) -> tuple[Codes, Floats]:
    """The `count` best of F, none of them excluded; ties by item code. faiss gives place -1 where it has no more."""
    for codes, scores, excluded in zip(codes_BF, scores_BF, exclude, strict=True):
        scores[np.isin(codes, excluded)] = -np.inf
    scores_BF[codes_BF == UNKNOWN] = -np.inf
    best_BK = np.lexsort((codes_BF, -scores_BF), axis=1)[:, :count]
    codes_BK = np.take_along_axis(codes_BF, best_BK, axis=1)
    scores_BK = np.take_along_axis(scores_BF, best_BK, axis=1)
    return np.where(np.isneginf(scores_BK), UNKNOWN, codes_BK), scores_BK
