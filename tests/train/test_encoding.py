from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from train.encoding import MAX_ATTRIBUTES, encode_attributes, encode_users
from train.vocabulary import UNKNOWN, Vocabulary

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
VOCABULARY = Vocabulary(
    items=("a", "b", "c d/é"),
    item_attributes=("kind=x",),
    user_attributes=tuple(f"token={number}" for number in range(40)),
    value_edges=(2.0, 4.0),
    event_types=("bought", "seen"),
)
History = list[tuple[str, float, int]]
"""Item, value, seconds ago; oldest first."""


def rows_of(*users: tuple[History, list[str] | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "history_items": [[item for item, _, _ in history] for history, _ in users],
            "history_values": [[value for _, value, _ in history] for history, _ in users],
            "history_types": [["bought" if value < 4 else "seen" for _, value, _ in history] for history, _ in users],
            "history_times": [[NOW - timedelta(seconds=age) for _, _, age in history] for history, _ in users],
            "user_attributes": [attributes for _, attributes in users],
            "event_time": [NOW] * len(users),
        },
        schema={
            "history_items": pl.List(pl.String),
            "history_values": pl.List(pl.Float32),
            "history_types": pl.List(pl.String),
            "history_times": pl.List(pl.Datetime("us", "UTC")),
            "user_attributes": pl.List(pl.String),
            "event_time": pl.Datetime("us", "UTC"),
        },
    )


THREE_USERS = rows_of(
    ([("a", 1, 100), ("c d/é", 2, 50), ("stranger", 3, 25), ("b", 5, 3)], ["token=1", "nobody=knows"]),
    ([], None),
    ([("b", 4, 7)], []),
)


def test_histories_are_right_aligned() -> None:
    users = encode_users(THREE_USERS, VOCABULARY, 6)
    assert users.history_BL.tolist() == [[0, 0, 1, 3, UNKNOWN, 2], [0] * 6, [0, 0, 0, 0, 0, 2]]
    assert users.history_values_BL.tolist() == [[0, 0, 1, 2, 2, 3], [0] * 6, [0, 0, 0, 0, 0, 3]]
    assert users.history_types_BL.tolist() == [[0, 0, 1, 1, 1, 2], [0] * 6, [0, 0, 0, 0, 0, 2]]
    assert users.history_ages_BL.tolist() == [[0, 0, 100, 50, 25, 3], [0] * 6, [0, 0, 0, 0, 0, 7]]
    assert users.attributes_BA.tolist()[0] == [0] * (MAX_ATTRIBUTES - 2) + [2, UNKNOWN]
    assert users.attributes_BA[1:].count_nonzero() == 0
    kinds = [users.history_BL.dtype, users.history_values_BL.dtype, users.history_ages_BL.dtype]
    assert kinds == [torch.int32, torch.int8, torch.float32]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_long_history_loses_its_oldest_events(length: int) -> None:
    users, whole = encode_users(THREE_USERS, VOCABULARY, length), encode_users(THREE_USERS, VOCABULARY, 6)
    for mine, other in (
        (users.history_BL, whole.history_BL),
        (users.history_values_BL, whole.history_values_BL),
        (users.history_types_BL, whole.history_types_BL),
        (users.history_ages_BL, whole.history_ages_BL),
    ):
        assert mine.tolist() == other[:, -length:].tolist()


def test_ages_are_exact_to_the_microsecond_for_recent_events_and_hold_for_old_ones() -> None:
    rows = rows_of(([("a", 1, 50 * 365 * 86400), ("a", 1, 0)], [])).with_columns(
        pl.col("event_time") + timedelta(microseconds=1)
    )
    ages = encode_users(rows, VOCABULARY, 2).history_ages_BL[0].tolist()
    assert ages[0] == pytest.approx(50 * 365 * 86400, rel=1e-6)
    assert ages[1] == pytest.approx(1e-6)


def test_rows_do_not_influence_each_other() -> None:
    together = encode_users(THREE_USERS, VOCABULARY, 3)
    for number in range(THREE_USERS.height):
        alone = encode_users(THREE_USERS[number : number + 1], VOCABULARY, 3)
        assert alone.history_BL.tolist() == together[number : number + 1].history_BL.tolist()
        assert alone.history_ages_BL.tolist() == together[number : number + 1].history_ages_BL.tolist()
        assert alone.attributes_BA.tolist() == together[number : number + 1].attributes_BA.tolist()


def test_only_the_last_attributes_are_read_when_there_are_too_many() -> None:
    tokens = pl.Series([[f"token={number}" for number in range(20)], ["token=3"]])
    codes = encode_attributes(tokens, VOCABULARY.user_attribute_codes)
    assert codes.shape == (2, MAX_ATTRIBUTES)
    assert codes[0].tolist() == list(range(20 - MAX_ATTRIBUTES + 1, 21))
    assert codes[1].tolist() == [0] * (MAX_ATTRIBUTES - 1) + [4]


def test_no_rows_give_empty_tensors() -> None:
    users = encode_users(THREE_USERS[:0], VOCABULARY, 5)
    assert len(users) == 0
    assert users.history_BL.shape == users.history_ages_BL.shape == (0, 5)


def test_many_random_histories_equal_a_loop() -> None:
    random = np.random.default_rng(1)
    histories: list[History] = [
        [
            (str(random.choice(["a", "b", "c d/é", "?"])), float(random.integers(0, 6)), int(random.integers(0, 1000)))
            for _ in range(random.integers(0, 9))
        ]
        for _ in range(200)
    ]
    users = encode_users(rows_of(*((history, []) for history in histories)), VOCABULARY, 5)
    for row, history in enumerate(histories):
        kept = history[-5:]
        padding = [0] * (5 - len(kept))
        assert users.history_BL[row].tolist() == padding + [VOCABULARY.item_code(item) for item, _, _ in kept]
        assert users.history_values_BL[row].tolist() == padding + [1 + (v >= 2) + (v >= 4) for _, v, _ in kept]
        assert users.history_ages_BL[row].tolist() == padding + [age for _, _, age in kept]
