"""Whether a list keeps the mix of the user's history (Steck, RecSys 2018)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse

from train.vocabulary import UNKNOWN

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

SMOOTHING = 0.01
"""The paper's alpha: how much of the history's mix is added to the list's, so that the divergence is finite."""


def miscalibration(ranked_BK: Codes, histories: Sequence[Codes], attributes_IA: scipy.sparse.csr_array) -> Values:
    """Kullback-Leibler divergence (B,), in nats, of the list's mix of attributes from the history's: 0 is the same.

    An item's weight is shared equally by its attributes; all events of a history and all places of a list weigh the
    same. `attributes_IA` (I + 1, A): 1 where an item has an attribute. NaN where the history or the list has none.
    """
    shared_IA = _rows_to_one(attributes_IA.astype(np.float64))
    size = attributes_IA.shape[0]
    wanted_BA = _rows_to_one(_counts(histories, size) @ shared_IA)
    shown_BA = _rows_to_one(_counts(list(ranked_BK), size) @ shared_IA)
    smoothed_BA = scipy.sparse.csr_array((1 - SMOOTHING) * shown_BA + SMOOTHING * wanted_BA)
    ratio_BA = _logarithms(wanted_BA) - _logarithms(smoothed_BA)
    divergence_B = np.asarray(wanted_BA.multiply(ratio_BA).sum(axis=1)).ravel()
    is_known_B = (np.diff(wanted_BA.indptr) > 0) & (np.diff(shown_BA.indptr) > 0)
    return np.where(is_known_B, divergence_B, np.nan)


def _counts(lists: Sequence[Codes], size: int) -> scipy.sparse.csr_array:
    """How often each of B lists names each item code (B, I + 1), padding aside."""
    rows = np.repeat(np.arange(len(lists)), [len(codes) for codes in lists])
    codes = np.concatenate([*lists, np.empty(0, dtype=np.int64)])
    is_item = codes != UNKNOWN
    ones = np.ones(is_item.sum())
    return scipy.sparse.csr_array((ones, (rows[is_item], codes[is_item])), shape=(len(lists), size))


def _logarithms(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Of the entries that are not zero."""
    logarithms = matrix.copy()
    logarithms.data = np.log(logarithms.data)
    return logarithms


def _rows_to_one(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Rows that sum up to one, those that are empty aside."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scaled = scipy.sparse.csr_array(scipy.sparse.diags_array(1 / np.where(sums > 0, sums, 1)) @ matrix)
    scaled.eliminate_zeros()
    return scaled
