"""How early the right answers are named.

A metric is computed per list from `hits_BK` (whether the item at a place is right) and `positives_B` (how many items
would be right, wherever they are). Gains are binary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from train.vocabulary import UNKNOWN

Codes = npt.NDArray[np.int64]
Hits = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def hits_of(ranked_BK: Codes, targets: Sequence[Codes]) -> Hits:
    """Which places hold a right answer. Neither padding nor an item without a code is ever one."""
    hits_BK: Hits = is_among(ranked_BK, targets) & (ranked_BK != UNKNOWN)
    return hits_BK


def is_among(ranked_BK: Codes, lists: Sequence[Codes]) -> Hits:
    """Which codes are among those listed for their row."""
    lengths = [len(codes) for codes in lists]
    listed = np.concatenate([*lists, np.empty(0, dtype=np.int64)])
    base = 1 + max(ranked_BK.max(initial=0), listed.max(initial=0))
    rows_B1 = np.arange(len(ranked_BK))[:, np.newaxis]
    found: Hits = np.isin(rows_B1 * base + ranked_BK, np.repeat(np.arange(len(lists)), lengths) * base + listed)
    return found


def first_places(hits_BK: Hits) -> Codes:
    """The place (B,), from 0, of the first right answer; -1 if a list has none."""
    return np.where(hits_BK.any(axis=1), hits_BK.argmax(axis=1), -1)


def recall_at(hits_BK: Hits, positives_B: Codes, k: int) -> Values:
    """Share of the right answers that are among the first k."""
    return _share(hits_BK[:, :k].sum(axis=1), positives_B)


def truncated_recall_at(hits_BK: Hits, positives_B: Codes, k: int) -> Values:
    """The same, divided by min(k, positives), so that 1 can be reached (Liang et al., WWW 2018)."""
    return _share(hits_BK[:, :k].sum(axis=1), np.minimum(positives_B, k))


def hit_rate_at(hits_BK: Hits, positives_B: Codes, k: int) -> Values:
    """1 if any right answer is among the first k."""
    return np.where(positives_B > 0, hits_BK[:, :k].any(axis=1), np.nan)


def ndcg_at(hits_BK: Hits, positives_B: Codes, k: int) -> Values:
    """Discounted cumulative gain over that of the best list of k: a gain at place i (from 0) counts 1 / log2(2 + i).

    Järvelin & Kekäläinen, 2002; with min(k, positives) gains in the best list, as Mult-VAE counts.
    """
    discounts_K = 1 / np.log2(2 + np.arange(k))
    ideal = np.concatenate([[0.0], np.cumsum(discounts_K)])
    first_BK = hits_BK[:, :k]
    return _share(first_BK @ discounts_K[: first_BK.shape[1]], ideal[np.minimum(positives_B, k)])


def reciprocal_rank(hits_BK: Hits, positives_B: Codes) -> Values:
    """1 / place (from 1) of the first right answer, 0 if the list has none. Its mean is MRR."""
    places_B = first_places(hits_BK)
    return np.where(positives_B > 0, (places_B >= 0) / (1.0 + np.maximum(places_B, 0)), np.nan)


def average_precision_at(hits_BK: Hits, positives_B: Codes, k: int) -> Values:
    """Precision at each right answer's place among the first k, summed, over min(k, positives). Its mean is MAP."""
    first_BK = hits_BK[:, :k]
    precision_BK = np.cumsum(first_BK, axis=1) / (1 + np.arange(first_BK.shape[1]))
    return _share((precision_BK * first_BK).sum(axis=1), np.minimum(positives_B, k))


def _share(parts_B: npt.NDArray[np.generic], wholes_B: npt.NDArray[np.generic]) -> Values:
    """NaN where there is nothing to find."""
    parts, wholes = parts_B.astype(np.float64), wholes_B.astype(np.float64)
    shares: Values = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    return shares
