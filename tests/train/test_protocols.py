"""Each protocol against a loop that follows its words."""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.errors import TowerlineError
from data.features import NEVER, with_sequence
from tests.train.planted import START, events_of
from train.protocols import (
    AnyProtocol,
    EvaluationProtocol,
    GlobalTime,
    LeaveOneOut,
    StrongGeneralisation,
    require_same_protocol,
)

ALL = [
    LeaveOneOut(),
    LeaveOneOut(cut_off=1),
    LeaveOneOut(cut_off=2),
    GlobalTime(),
    GlobalTime(test_share=0.2),
    StrongGeneralisation(),
    StrongGeneralisation(min_value=4),
    StrongGeneralisation(seed=1),
]


def random_events(seed: int = 0, users: int = 80, items: int = 50) -> pl.DataFrame:
    """Users with 1 to 20 events; a third of the events share their moment with another."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(int(random.integers(1, 21))):
            moment = START + timedelta(hours=int(random.integers(0, 300)))
            rows.append((f"u{user}", f"i{random.integers(items)}", "view", float(random.integers(1, 6)), moment))
    return with_sequence(events_of(rows))


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return random_events()


def splits_of(assigned: pl.DataFrame) -> dict[int, str]:
    return dict(zip(assigned["sequence"], assigned["split"], strict=True))


def sequences_of_users(events: pl.DataFrame) -> dict[str, list[int]]:
    found = defaultdict(list)
    for user, sequence in zip(events["user_id"], events["sequence"], strict=True):
        found[user].append(sequence)
    return found


@pytest.mark.parametrize("cut_off", [0, 1, 2])
def test_leave_one_out_takes_the_event_before_those_left_out(events: pl.DataFrame, cut_off: int) -> None:
    splits = splits_of(LeaveOneOut(cut_off=cut_off).assign(events))
    for sequences in sequences_of_users(events).values():
        kept = sequences[: len(sequences) - cut_off]
        expected = ["train"] * (len(kept) - 2) + ["validation", "test"] if len(kept) >= 3 else ["train"] * len(kept)
        assert [splits[each] for each in sequences] == expected + ["unused"] * (len(sequences) - len(kept))


def test_leave_one_out_is_what_the_examples_were_built_with(events: pl.DataFrame) -> None:
    """A cut-off is leave-one-out on data that ends earlier."""
    later = LeaveOneOut(cut_off=1).assign(events)
    shorter = LeaveOneOut().assign(events.filter(pl.int_range(pl.len()).reverse().over("user_id") > 0))
    assert later.filter(pl.col("split") != "unused").equals(shorter)


def test_questions_of_leave_one_out_are_asked_at_their_events(events: pl.DataFrame) -> None:
    assigned = LeaveOneOut(cut_off=1).assign(events)
    asked = LeaveOneOut(cut_off=1).questions(assigned, "validation")
    expected = assigned.filter(split="validation").sort("user_id")
    assert asked["user_id"].to_list() == expected["user_id"].to_list()
    assert asked["item_id"].to_list() == [[item] for item in expected["item_id"]]
    assert asked.select("event_time", "source_row", "sequence").equals(
        expected.select("event_time", "source_row", "sequence")
    )


def test_global_time_splits_all_events_at_two_moments(events: pl.DataFrame) -> None:
    protocol = GlobalTime(test_share=0.2, validation_share=0.1)
    splits = splits_of(protocol.assign(events))
    test, validation = round(0.2 * events.height), round(0.1 * events.height)
    train = events.height - test - validation
    assert [splits[each] for each in range(events.height)] == (
        ["train"] * train + ["validation"] * validation + ["test"] * test
    )


def test_global_time_asks_each_user_once_as_of_the_first_test_event(events: pl.DataFrame) -> None:
    protocol = GlobalTime(test_share=0.2)
    assigned = protocol.assign(events)
    asked = protocol.questions(assigned, "test")
    tested = assigned.filter(split="test").sort("sequence")
    assert asked["user_id"].to_list() == sorted(set(tested["user_id"]))
    for column in ("event_time", "source_row", "sequence"):
        assert set(asked[column]) == {tested[column][0]}
    for user, items in zip(asked["user_id"], asked["item_id"], strict=True):
        assert items.to_list() == list(dict.fromkeys(tested.filter(user_id=user)["item_id"]))


@pytest.mark.parametrize("min_value", [None, 3.0])
def test_strong_generalisation_follows_the_paper(events: pl.DataFrame, min_value: float | None) -> None:
    protocol = StrongGeneralisation(held_out_share=0.2, min_value=min_value)
    assigned = protocol.assign(events)
    liked = assigned if min_value is None else assigned.filter(pl.col("value") >= min_value)
    distinct = {user: set(items) for user, items in liked.group_by("user_id").agg("item_id").iter_rows()}
    eligible = {user for user, items in distinct.items() if len(items) >= 5}
    by_split = {name: set(part["user_id"]) for (name,), part in assigned.partition_by("split", as_dict=True).items()}
    training, held = by_split["train"], by_split["fold-in"]
    assert training | held == eligible
    assert not training & held
    assert len(held) == 2 * round(0.2 * len(eligible))
    assert not by_split["test"] & by_split["validation"]
    trained_items = set(assigned.filter(split="train")["item_id"])
    for user in held:
        known = distinct[user] & trained_items
        own = assigned.filter(user_id=user)
        asked = set(own.filter(pl.col("split").is_in(["test", "validation"]))["item_id"])
        told = set(own.filter(split="fold-in")["item_id"])
        assert len(asked) == int(0.2 * len(known))
        assert asked | told == known
        assert not asked & told
    if min_value is not None:
        assert assigned.filter(pl.col("split") != "unused")["value"].min() >= min_value


def test_strong_generalisation_asks_after_all_that_is_told(events: pl.DataFrame) -> None:
    protocol = StrongGeneralisation()
    assigned = protocol.assign(events)
    asked = protocol.questions(assigned, "test")
    known = protocol.visible(assigned)
    assert set(known["split"]) == {"train", "fold-in"}
    for row in asked.iter_rows(named=True):
        told = known.filter(user_id=row["user_id"])
        assert row["event_time"] == told["event_time"].max()
        assert row["source_row"] == NEVER
        assert row["sequence"] == told["sequence"].max() + 1
        assert not set(row["item_id"]) & set(told["item_id"])


def test_a_repeated_item_is_on_one_side(events: pl.DataFrame) -> None:
    twice = with_sequence(
        pl.concat([events, events.with_columns(pl.col("source_row") + events.height)]).drop("sequence")
    )
    assigned = StrongGeneralisation().assign(twice)
    sides = assigned.group_by("user_id", "item_id").agg(pl.col("split").n_unique())
    assert sides["split"].max() == 1


def test_another_seed_holds_out_others(events: pl.DataFrame) -> None:
    held = [
        set(StrongGeneralisation(seed=seed).assign(events).filter(split="fold-in")["user_id"]) for seed in (0, 0, 1)
    ]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("protocol", ALL)
def test_no_order_of_the_rows_and_no_earlier_split_changes_a_protocol(
    events: pl.DataFrame, protocol: EvaluationProtocol
) -> None:
    assigned = protocol.assign(events)
    assert assigned.height == events.height
    shuffled = events.sample(fraction=1, shuffle=True, seed=3).with_columns(pl.lit("test").alias("split"))
    assert protocol.assign(shuffled).select("sequence", "split").equals(assigned.select("sequence", "split"))


@pytest.mark.parametrize("protocol", ALL)
def test_every_protocol_asks_each_user_once(events: pl.DataFrame, protocol: EvaluationProtocol) -> None:
    assigned = protocol.assign(events)
    for split in ("validation", "test"):
        asked = protocol.questions(assigned, split)
        assert asked.height > 0
        assert asked["item_id"].list.len().min() > 0
        assert asked["user_id"].is_unique().all()
    with pytest.raises(ValueError, match="split is 'train', expected 'validation' or 'test'"):
        protocol.questions(assigned, "train")


def test_hashes_follow_every_parameter() -> None:
    """These are the hashes of the rules as they are: who changes a rule raises `RULES`, and all of them change."""
    assert len({protocol.hash for protocol in ALL}) == len(ALL)
    assert [protocol.hash for protocol in (LeaveOneOut(), GlobalTime(), StrongGeneralisation())] == [
        "c13a9670054c",
        "ada599a50df1",
        "8e7b1f268711",
    ]


def test_words_are_as_different_as_hashes() -> None:
    assert len({protocol.words for protocol in ALL}) == len(ALL)
    for protocol in ALL:
        assert "an item met before counts as a miss" in protocol.words


def test_protocols_are_frozen_and_come_back_from_json() -> None:
    adapter: TypeAdapter[AnyProtocol] = TypeAdapter(AnyProtocol)
    for protocol in ALL:
        again = adapter.validate_json(protocol.model_dump_json())
        assert again == protocol
        assert again.hash == protocol.hash
    with pytest.raises(ValidationError, match="frozen"):
        ALL[0].cut_off = 1  # type: ignore[misc, union-attr]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeaveOneOut(cut_off=3), "less than or equal to 2"),
        (lambda: GlobalTime(test_share=0.6, validation_share=0.4), "leave nothing to train on"),
        (lambda: GlobalTime(test_share=0), "greater than 0"),
        (lambda: StrongGeneralisation(held_out_share=0.5), "less than 0.5"),
        (lambda: StrongGeneralisation(users=3), "Extra inputs"),  # type: ignore[call-arg]
    ],
)
def test_impossible_protocols_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()  # type: ignore[operator]


def test_too_little_data_is_refused_with_the_numbers(events: pl.DataFrame) -> None:
    with pytest.raises(TowerlineError, match=r"of 4 events .* has 4 to train, 0 to validate and 0 to test"):
        GlobalTime().assign(events.head(4))
    few = events.filter(pl.col("user_id").is_in(["u1", "u2"]))
    with pytest.raises(TowerlineError, match=r"holds out 10 % of the users twice, and \d have 5 distinct items"):
        StrongGeneralisation().assign(few)


@pytest.mark.parametrize(("value", "min_value"), [(1.0, 1.0), (3.0, 4.0)])
def test_a_value_that_never_varies_tells_nothing(events: pl.DataFrame, value: float, min_value: float) -> None:
    same = events.with_columns(pl.lit(value, dtype=pl.Float32).alias("value"))
    with pytest.raises(TowerlineError, match=f"min_value={min_value:g} cannot tell liked from not.*from {value}"):
        StrongGeneralisation(min_value=min_value).assign(same)


def test_figures_of_two_protocols_are_not_compared() -> None:
    @dataclass
    class Result:
        protocol_hash: str

    for one, other in itertools.product("ab", repeat=2):
        if one == other:
            require_same_protocol(Result(one), Result(other))
        else:
            with pytest.raises(
                TowerlineError, match=f"by protocol {one} cannot be compared with those by protocol {other}"
            ):
                require_same_protocol(Result(one), Result(other))
