"""What one list shows: how little known its items are, and how unlike each other."""

import itertools

import numpy as np
import numpy.typing as npt
import scipy.sparse

from train.vocabulary import UNKNOWN

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def novelty(ranked_BK: Codes, users_I: npt.NDArray[np.int64], num_users: int) -> Values:
    """Mean surprise (B,) of a list's items, in bits: -log2 of the share of the users who met the item in training.

    Zhou et al., PNAS 2010. An item nobody met counts as met by one. `users_I` (I + 1,): users by item code. NaN for an
    empty list.
    """
    bits_I = np.log2(max(num_users, 1)) - np.log2(np.maximum(users_I, 1))
    is_item_BK = ranked_BK != UNKNOWN
    return _mean((bits_I[ranked_BK] * is_item_BK).sum(axis=1), is_item_BK.sum(axis=1))


def intra_list_diversity(ranked_BK: Codes, attributes_IA: scipy.sparse.csr_array) -> Values:
    """Mean distance (B,) of the pairs of a list's items: 1 - |common attributes| / |attributes of either| (Jaccard).

    Ziegler et al., WWW 2005. `attributes_IA` (I + 1, A): 1 where an item has an attribute; two items without any
    have nothing in common. NaN for a list of fewer than two items.
    """
    sizes_I = np.asarray(attributes_IA.sum(axis=1), dtype=np.float64)
    columns = [(codes_B, attributes_IA[codes_B], sizes_I[codes_B]) for codes_B in ranked_BK.T]
    total_B, pairs_B = np.zeros(len(ranked_BK)), np.zeros(len(ranked_BK))
    for (a_B, a_BA, a_size_B), (b_B, b_BA, b_size_B) in itertools.combinations(columns, 2):
        common_B = np.asarray(a_BA.multiply(b_BA).sum(axis=1), dtype=np.float64)
        either_B = np.maximum(a_size_B + b_size_B - common_B, 1)
        is_pair_B = (a_B != UNKNOWN) & (b_B != UNKNOWN)
        total_B += is_pair_B * (1 - common_B / either_B)
        pairs_B += is_pair_B
    return _mean(total_B, pairs_B)


def _mean(sums_B: npt.NDArray[np.generic], counts_B: npt.NDArray[np.generic]) -> Values:
    sums, counts = sums_B.astype(np.float64), counts_B.astype(np.float64)
    means: Values = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means
