import numpy as np
import polars as pl

from train.histories import Histories
from train.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("x", "y", "z"), (), (), ())


def test_only_what_came_before_is_seen() -> None:
    events = pl.DataFrame(
        [("anna", "y", 6), ("anna", "x", 1), ("b/ö", "z", 2), ("anna", "x", 4), ("anna", "gone", 5)],
        schema=["user_id", "item_id", "sequence"],
        orient="row",
    )
    histories = Histories(events, VOCABULARY)
    asked = [("anna", 1), ("anna", 2), ("anna", 4), ("anna", 7), ("b/ö", 2), ("b/ö", 3), ("nobody", 9)]
    found = histories.before([user for user, _ in asked], [sequence for _, sequence in asked])
    assert [codes.tolist() for codes in found] == [[], [1], [1], [1, 1, 0, 2], [], [3], []]


def test_many_events_equal_a_loop() -> None:
    random = np.random.default_rng(0)
    rows = [(f"u{random.integers(20)}", "xyz"[random.integers(3)], sequence) for sequence in range(500)]
    order = random.permutation(len(rows))
    events = pl.DataFrame([rows[row] for row in order], schema=["user_id", "item_id", "sequence"], orient="row")
    found = Histories(events, VOCABULARY).before([row[0] for row in rows], [row[2] for row in rows])
    for (user, _, sequence), codes in zip(rows, found, strict=True):
        assert codes.tolist() == ["xyz".index(item) + 1 for who, item, at in rows if who == user and at < sequence]
