"""What the models are measured against: popularity and item-item collaborative filtering."""

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse

from data.schema import HISTORY_ITEMS, ITEM_ID, USER_ID
from train.index import top_items
from train.vocabulary import UNKNOWN, Vocabulary

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Popularity:
    """Everybody gets the items with the most events."""

    def __init__(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        codes = vocabulary.encode_items(events[ITEM_ID])
        self._scores_I = np.bincount(codes, minlength=vocabulary.num_items + 1).astype(np.float32)

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The `count` most popular items (B, K) that are not excluded."""
        return _best_allowed(np.tile(self._scores_I, (rows.height, 1)), exclude, count)


class ItemItem:
    """Items most similar, by cosine of their users, to those in the history (Sarwar et al., WWW 2001)."""

    def __init__(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        users = events[USER_ID].rank("dense").to_numpy().astype(np.int64) - 1
        codes = vocabulary.encode_items(events[ITEM_ID])
        shape = (int(users.max()) + 1, vocabulary.num_items + 1)
        met = scipy.sparse.csr_array((np.ones(len(codes), dtype=np.float32), (users, codes)), shape=shape)
        met.data[:] = 1
        norms_I = np.sqrt(np.maximum(met.power(2).sum(axis=0), 1)).astype(np.float32)
        unit = met @ scipy.sparse.diags_array(1 / norms_I)
        self._cosines_II = (unit.T @ unit).toarray().astype(np.float32)
        np.fill_diagonal(self._cosines_II, 0)

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The `count` items (B, K) with the highest sum of cosines to the history (`history_items`)."""
        histories = [self._vocabulary.encode_items(history) for history in rows[HISTORY_ITEMS]]
        scores_BI = np.stack([self._cosines_II[codes].sum(axis=0) for codes in histories])
        return _best_allowed(scores_BI, exclude, count)


def _best_allowed(scores_BI: Floats, exclude: list[Codes], count: int) -> Codes:
    scores_BI[:, UNKNOWN] = -np.inf
    for scores_I, codes in zip(scores_BI, exclude, strict=True):
        scores_I[codes] = -np.inf
    return top_items(scores_BI, count)[0]
