"""Which items people take up close together: a sparse item-item matrix, the ranker's second opinion on a candidate."""

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse

from data.schema import ITEM_ID, SEQUENCE, USER_ID
from train.vocabulary import UNKNOWN, Vocabulary

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

WINDOW = 10
"""Two events of a user count as a pair if at most so many steps lie between them."""
PRIOR_EVENTS = 10.0
"""Added to each item's number of events, so that rare items do not look inseparable."""
RECENT = 10
"""Events of the history that vouch for a candidate, the newest with the most weight."""

COVISITATION_PARAMETERS = {"window": WINDOW, "prior_events": PRIOR_EVENTS, "recent": RECENT}
"""All of them, for the fingerprint."""


def fit_covisitation(events: pl.DataFrame, vocabulary: Vocabulary) -> scipy.sparse.csr_array:
    """Pairs within `WINDOW` steps of the same user, over the geometric mean of the two items' events: (I, I)."""
    ordered = events.select(USER_ID, ITEM_ID, SEQUENCE).sort(USER_ID, SEQUENCE)
    users = ordered[USER_ID].rank("dense").to_numpy()
    codes = vocabulary.encode_items(ordered[ITEM_ID])
    firsts, seconds = [], []
    for step in range(1, min(WINDOW, len(codes) - 1) + 1):
        same = users[step:] == users[:-step]
        firsts.append(codes[:-step][same])
        seconds.append(codes[step:][same])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    shape = (vocabulary.num_items + 1, vocabulary.num_items + 1)
    pairs = scipy.sparse.csr_array((np.ones(len(first), dtype=np.float32), (first, second)), shape=shape)
    scale_I = 1 / np.sqrt(np.bincount(codes, minlength=shape[0]) + PRIOR_EVENTS)
    diagonal = scipy.sparse.diags_array(scale_I.astype(np.float32))
    return scipy.sparse.csr_array(diagonal @ (pairs + pairs.T) @ diagonal)


def covisitation_of(matrix: scipy.sparse.csr_array, history_BL: Codes, candidates_BK: Codes) -> Floats:
    """How strongly the last `RECENT` events vouch for each candidate: (B, K), 0 and more.

    `history_BL`: item codes, newest last, padded with `UNKNOWN`.
    """
    recent_BR = history_BL[:, -RECENT:]
    weights_R = np.arange(RECENT - recent_BR.shape[1] + 1, RECENT + 1, dtype=np.float32)
    weights_BR = np.where(recent_BR == UNKNOWN, np.float32(0), weights_R)
    rows = np.repeat(np.arange(len(recent_BR)), recent_BR.shape[1])
    asked = scipy.sparse.csr_array(
        (weights_BR.ravel(), (rows, recent_BR.ravel())), shape=(len(recent_BR), matrix.shape[0])
    )
    vouched_BI = scipy.sparse.csr_array(asked @ matrix)
    row_BK = np.broadcast_to(np.arange(len(candidates_BK))[:, np.newaxis], candidates_BK.shape)
    found = vouched_BI[row_BK.ravel(), candidates_BK.ravel()]
    return np.asarray(found, dtype=np.float32).reshape(candidates_BK.shape)
