"""What ranks the catalogue: the models, the baselines and the candidate sources all look like this to an evaluation.

`rows` are feature rows as of a moment (columns of `data.schema`). A user's history is read from their
`history_items`, which holds the last events only; `exclude` holds, for each row, every item met before. Codes are
those of a `Vocabulary`. The answers are deterministic for a given seed, and ties are broken by item code.
"""

from typing import Protocol

import polars as pl

from train.index import Codes, Floats
from train.vocabulary import Vocabulary


class Recommends(Protocol):
    """Anything that ranks the catalogue for users at a moment."""

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """Item codes (B, K), best first, for B feature rows; none of those excluded for its row.

        K is `count` or the catalogue's size, whichever is smaller; the code is `UNKNOWN` where a row ran out of items.
        """


class Recommender(Recommends, Protocol):
    """What learns from events alone, and knows items that are like another."""

    def fit(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Learn from the training events only: columns of `data.dataset.STORED_EVENTS` and `sequence`."""

    def similar(self, items: Codes, count: int) -> Codes:
        """The `count` items (N, K) most like each of N, best first, never the item itself."""


class CandidateSource(Recommender, Protocol):
    """A recommender whose scores can be blended with others' or read by a ranker."""

    def score(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        """Scores (B, K) of K candidates for each of B rows: the higher, the earlier `recommend` names it."""
