"""Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): good items that are not all alike."""

import numpy as np

from serve.batch import Batch, Codes, Floats
from serve.variant import Variant
from train.vocabulary import UNKNOWN


class Diversity:
    """Places one item after the other, each by its score less its likeness to the nearest of those before it.

    A score here is that of the place that an item comes at: where the order is not the ranker's any more (`Rerank`), it
    is the order that counts.
    """

    def __init__(self, variant: Variant, relevance: float) -> None:
        """`relevance`: the lambda of the paper, 0 to 1; the weight of the score. 1 leaves the order as it is."""
        self._variant = variant
        self._relevance = relevance

    def run(self, batch: Batch) -> Batch:
        """Reorder the first items, as many as the batch's largest request wants; the others follow in their order."""
        if self._relevance == 1:
            return batch
        wanted = min(max(call.count for call in batch.calls), batch.codes_BK.shape[1])
        return batch.reordered(self._order(batch, wanted))

    def _order(self, batch: Batch, wanted: int) -> Codes:
        relevance_BK = self._relevance * _between_0_and_1(batch)
        vectors_BKD = self._variant.directions(batch.codes_BK)
        rows_B = np.arange(len(batch))
        nearest_BK = np.zeros_like(relevance_BK)
        taken_BK = np.zeros(relevance_BK.shape, np.bool_)
        first_BW = np.empty((len(batch), wanted), np.int64)
        for place in range(wanted):
            marginal_BK = relevance_BK - (1 - self._relevance) * nearest_BK
            marginal_BK[batch.codes_BK == UNKNOWN] = np.finfo(np.float32).min
            marginal_BK[taken_BK] = -np.inf
            first_BW[:, place] = marginal_BK.argmax(axis=1)
            taken_BK[rows_B, first_BW[:, place]] = True
            cosines_BK = np.einsum("bkd,bd->bk", vectors_BKD, vectors_BKD[rows_B, first_BW[:, place]])
            nearest_BK = np.maximum(nearest_BK, cosines_BK) if place else cosines_BK
        others_BK = np.nonzero(~taken_BK)[1].reshape(len(batch), -1)
        return np.concatenate([first_BW, others_BK], axis=1)


def _between_0_and_1(batch: Batch) -> Floats:
    """The scores (B, K), each row on a scale from its worst to its best: cosines have one, logits have none."""
    present_BK = batch.codes_BK != UNKNOWN
    in_order_BK = -np.sort(np.where(present_BK, -batch.scores_BK, np.inf), axis=1)
    best_B1 = np.max(in_order_BK, axis=1, keepdims=True, initial=-np.inf, where=present_BK)
    scores_BK = np.where(present_BK, in_order_BK, best_B1)
    scores_BK = np.where(np.isfinite(scores_BK), scores_BK, 0)
    worst_B1 = scores_BK.min(axis=1, keepdims=True)
    range_B1 = scores_BK.max(axis=1, keepdims=True) - worst_B1
    scaled_BK: Floats = ((scores_BK - worst_B1) / np.where(range_B1 > 0, range_B1, 1)).astype(np.float32)
    return scaled_BK
