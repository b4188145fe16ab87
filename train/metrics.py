"""Ranking metrics over one relevant item per user. A rank is 0 for the first place and -1 for "not in the list"."""

import numpy as np
import numpy.typing as npt

from train.vocabulary import UNKNOWN

Ranks = npt.NDArray[np.int64]


def ranks_of(target_B: npt.NDArray[np.int64], ranked_BK: npt.NDArray[np.int64]) -> Ranks:
    """The place (B,) of each target code in its row of ranked codes."""
    found_BK = ranked_BK == target_B[:, np.newaxis]
    return np.where(found_BK.any(axis=1), found_BK.argmax(axis=1), -1)


def recall_at(ranks: Ranks, k: int) -> float:
    """Share of users whose item is among the first k."""
    return float(np.mean(_within(ranks, k)))


def ndcg_at(ranks: Ranks, k: int) -> float:
    """Normalised discounted cumulative gain: 1 / log2(2 + rank) within the first k (Järvelin & Kekäläinen, 2002)."""
    return float(np.mean(np.where(_within(ranks, k), 1 / np.log2(2 + np.maximum(ranks, 0)), 0.0)))


def mrr(ranks: Ranks) -> float:
    """Mean reciprocal rank over the whole list."""
    return float(np.mean(np.where(ranks >= 0, 1 / (1 + np.maximum(ranks, 0)), 0.0)))


def items_shown(ranked_BK: npt.NDArray[np.int64], k: int) -> set[int]:
    """Codes of the items in anybody's first k; their share of the catalogue is the coverage."""
    return set(ranked_BK[:, :k].ravel().tolist()) - {UNKNOWN}


def _within(ranks: Ranks, k: int) -> npt.NDArray[np.bool_]:
    return (ranks >= 0) & (ranks < k)
