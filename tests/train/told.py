"""Questions made by hand, and a recommender that answers what it was told."""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from train.cases import Cases, Training
from train.index import Codes
from train.protocols import EvaluationProtocol, LeaveOneOut
from train.vocabulary import Vocabulary

ITEMS = "abcdefghij"
"""The catalogue: the code of `a` is 1."""


class Told:
    """Gives each user the list (item names, `-` for none) that it was told, and remembers what it was asked."""

    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers
        self.asked: list[tuple[str, list[int], int]] = []

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        users = rows["user_id"].to_list()
        self.asked += [(user, codes.tolist(), count) for user, codes in zip(users, exclude, strict=True)]
        return np.array([codes_of(self._answers[user]) for user in users])


def codes_of(word: str) -> Codes:
    return np.array([("-" + ITEMS).index(item) for item in word], dtype=np.int64)


def told_cases(
    histories: dict[str, str],
    targets: dict[str, str],
    *,
    protocol: EvaluationProtocol | None = None,
    attributes: dict[str, list[str]] | None = None,
    trained: dict[str, int] | None = None,
) -> Cases:
    """One case per user. `trained`: item to its training events, 1 each if None; `-` as a target is an unknown item."""
    size = len(ITEMS) + 1
    events_I = np.array([0] + [1 if trained is None else trained.get(item, 0) for item in ITEMS])
    rows = pl.DataFrame(
        {
            "user_id": list(targets),
            "event_time": [datetime(2024, 1, 1, tzinfo=UTC)] * len(targets),
            "user_attributes": pl.Series([(attributes or {}).get(u, []) for u in targets], dtype=pl.List(pl.String)),
        }
    )
    assert len(events_I) == size
    return Cases(
        protocol or LeaveOneOut(),
        Vocabulary(tuple(ITEMS), (), (), ()),
        rows,
        [codes_of(histories[user]) for user in targets],
        [codes_of(word) for word in targets.values()],
        Training(events_I, np.minimum(events_I, 4), 4),
    )


def catalogue(attributes: dict[str, list[str]] | None = None) -> pl.DataFrame:
    """The items, with what is said of them."""
    said = [(attributes or {}).get(item, []) for item in ITEMS]
    return pl.DataFrame({"item_id": list(ITEMS), "attributes": pl.Series(said, dtype=pl.List(pl.String))})
