"""Leaves out what the user has already had to do with and cuts the candidates to the graph's width."""

import dataclasses

import numpy as np

from serve.batch import Batch
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN


class Filter:
    """Already seen: items of the user's events and of the request's recent items."""

    def __init__(self, catalogue: Catalogue, candidates: int) -> None:
        self._catalogue = catalogue
        self._candidates = candidates

    def run(self, batch: Batch) -> Batch:
        """Keep the first unseen `candidates` of each row, in order; free slots hold `UNKNOWN` and -inf."""
        shape = (len(batch), min(self._candidates, batch.codes_BK.shape[1]))
        codes_BK = np.full(shape, UNKNOWN, np.int64)
        scores_BK = np.full(shape, -np.inf, np.float32)
        for row, seen in enumerate(batch.seen):
            seen_codes = [self._catalogue.code(item_id) for item_id in seen]
            unseen = ~np.isin(batch.codes_BK[row], [*seen_codes, UNKNOWN])
            kept = np.flatnonzero(unseen)[: shape[1]]
            codes_BK[row, : len(kept)] = batch.codes_BK[row, kept]
            scores_BK[row, : len(kept)] = batch.retrieval_BK[row, kept]
        return dataclasses.replace(batch, codes_BK=codes_BK, retrieval_BK=scores_BK)
