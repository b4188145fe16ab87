"""Who met what, as sparse matrices: users by items to learn from, histories by items to ask with."""

import numpy as np
import polars as pl
import scipy.sparse

from cluster.errors import TowerlineError
from data.schema import HISTORY_ITEMS, ITEM_ID, SEQUENCE, USER_ID
from train.vocabulary import UNKNOWN, Vocabulary


def interactions(events: pl.DataFrame, vocabulary: Vocabulary, newest: int | None = None) -> scipy.sparse.csr_array:
    """1 where a user met an item, however often: float32 (U, I + 1); a column is an item code, users come by id.

    Of a user with more than `newest` items only so many, the last met, are kept. Items without a code are left out.

    Raises:
        TowerlineError: no event's item is in the vocabulary.
    """
    codes = pl.Series("code", vocabulary.encode_items(events[ITEM_ID]))
    known = events.select(USER_ID, SEQUENCE).with_columns(codes).filter(pl.col("code") != UNKNOWN)
    if known.is_empty():
        raise TowerlineError(
            f"none of the {events.height} training events names one of the {vocabulary.num_items} items of the "
            "vocabulary; build the vocabulary from the same data set"
        )
    met = known.group_by(USER_ID, "code").agg(pl.col(SEQUENCE).max())
    if newest is not None:
        met = met.filter(pl.col(SEQUENCE).rank("ordinal", descending=True).over(USER_ID) <= newest)
    users = met[USER_ID].rank("dense").to_numpy().astype(np.int64) - 1
    ones = np.ones(met.height, dtype=np.float32)
    shape = (int(users.max()) + 1, vocabulary.num_items + 1)
    matrix = scipy.sparse.csr_array((ones, (users, met["code"].to_numpy())), shape=shape)
    matrix.sort_indices()
    return matrix


def histories(rows: pl.DataFrame, vocabulary: Vocabulary, half_life: float | None) -> scipy.sparse.csr_array:
    """The weight of every item in the history of B feature rows: float32 (B, I + 1).

    The newest event weighs 1, one that is `half_life` events older half of it; all weigh 1 if it is None. An item met
    several times counts once, by its newest event.
    """
    shape = (rows.height, vocabulary.num_items + 1)
    lengths = rows[HISTORY_ITEMS].list.len().to_numpy().astype(np.int64)
    codes = vocabulary.encode_items(rows[HISTORY_ITEMS].explode(empty_as_null=False, keep_nulls=False))
    owners = np.repeat(np.arange(rows.height), lengths)
    ages = np.cumsum(lengths)[owners] - 1 - np.arange(len(codes))
    known = np.flatnonzero(codes != UNKNOWN)
    newest_first = known[np.lexsort((ages[known], codes[known], owners[known]))]
    keys = owners[newest_first] * shape[1] + codes[newest_first]
    once = newest_first[np.flatnonzero(np.diff(keys, prepend=-1))]
    weights = np.ones(len(once)) if half_life is None else np.exp2(-ages[once] / half_life)
    matrix = scipy.sparse.csr_array((weights.astype(np.float32), (owners[once], codes[once])), shape=shape)
    matrix.sort_indices()
    return matrix
