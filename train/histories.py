"""Which items a user had met before a moment: what is masked when recommendations are made or judged offline."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from data.schema import ITEM_ID, SEQUENCE, USER_ID
from train.vocabulary import Vocabulary


class Histories:
    """Every user's item codes in the total order."""

    def __init__(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """`events`: user_id, item_id, sequence."""
        ordered = events.select(USER_ID, ITEM_ID, SEQUENCE).sort(USER_ID, SEQUENCE)
        self._codes = vocabulary.encode_items(ordered[ITEM_ID])
        self._sequences = ordered[SEQUENCE].to_numpy()
        lengths = ordered.group_by(USER_ID, maintain_order=True).len()
        ends = lengths["len"].cum_sum()
        starts = ends - lengths["len"]
        self._bounds = dict(zip(lengths[USER_ID], zip(starts, ends, strict=True), strict=True))

    def before(self, users: Sequence[str], sequences: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """For each (user, sequence): the codes of all items of the user's events with a smaller sequence."""
        return [self._before(user, sequence) for user, sequence in zip(users, sequences, strict=True)]

    def _before(self, user: str, sequence: int) -> npt.NDArray[np.int64]:
        start, end = self._bounds.get(user, (0, 0))
        return self._codes[start : start + np.searchsorted(self._sequences[start:end], sequence)]
