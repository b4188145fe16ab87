"""Figures by hand, what is asked of a recommender, what is refused, and the trained pair's figures."""

import math

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.splits import TEST
from tests.train.conftest import DonePath
from tests.train.planted import HISTORY, Planted
from tests.train.told import ITEMS, Told, catalogue, codes_of, told_cases
from train import evaluation as module
from train.cases import Cases, cases
from train.evaluation import Evaluation, Measurements, TargetCounts, evaluate, measure
from train.protocols import GlobalTime, LeaveOneOut, StrongGeneralisation
from train.recommender import Recommends
from train.user_values import paired_test
from train.vocabulary import Vocabulary

HISTORIES = {"one": "ab", "two": "de", "three": "ca", "four": "bcbcb"}
TARGETS = {"one": "c", "two": "b", "three": "d", "four": "e"}
ANSWERS = {"one": "cde", "two": "acb", "three": "be-", "four": "eda"}
ATTRIBUTES = {"a": ["kind=1"], "b": ["kind=2"], "c": ["kind=1", "odd=yes"]}


@pytest.fixture
def four() -> Cases:
    return told_cases(HISTORIES, TARGETS, attributes={"one": ["sex=F"], "two": ["sex=M"]})


@pytest.fixture
def measured(four: Cases) -> Measurements:
    other = Told({"one": "hij", "two": "bca", "three": "dbe", "four": "hij"})
    return measure({"told": Told(ANSWERS), "other": other}, four, catalogue(ATTRIBUTES))


def test_figures_by_hand(measured: Measurements, four: Cases) -> None:
    evaluation = measured.evaluation
    assert evaluation.users == 4
    assert (evaluation.protocol_hash, evaluation.protocol) == (four.protocol.hash, four.protocol.words)
    expected = {
        "recall@10": 3 / 4,
        "ndcg@10": (1 + 1 / 2 + 0 + 1) / 4,
        "mrr": (1 + 1 / 3 + 0 + 1) / 4,
        "map@10": (1 + 1 / 3 + 0 + 1) / 4,
        "hit_rate@10": 3 / 4,
        "coverage@10": 5 / 10,
        "novelty@10": 2.0,
    }
    for name, value in expected.items():
        assert evaluation.figures[f"{name}/told"] == pytest.approx(value), name
    assert not {name for name, value in evaluation.figures.items() if not math.isfinite(value)}


def test_intervals_and_tests_stand_beside_the_figures(measured: Measurements) -> None:
    evaluation = measured.evaluation
    for name, interval in evaluation.intervals.items():
        assert interval.low <= interval.mean == evaluation.figures[name] <= interval.high
    assert set(evaluation.figures) - set(evaluation.intervals) == {
        f"{metric}/{model}" for metric in ("coverage@10", "gini@10") for model in ("told", "other")
    }
    assert evaluation.tests == (paired_test(measured.values, "told", "other", "ndcg@10"),)


def test_segments_are_means_over_their_users(measured: Measurements) -> None:
    """`four` alone has five events; every item has one training event, so the head are the first two."""
    segments = measured.evaluation.segments
    assert {name: each.users for name, each in segments.items()} == {
        "cold": 3, "warm": 1, "sex=(rare)": 2, "head": 1, "tail": 3,
    }  # fmt: skip
    expected = {"cold": 1.5 / 3, "warm": 1, "sex=(rare)": 1.5 / 2, "head": 1 / 2, "tail": 2 / 3}
    for name, value in expected.items():
        assert segments[name].intervals["ndcg@10/told"].mean == pytest.approx(value), name


def test_the_values_by_user_are_what_the_figures_are_means_of(measured: Measurements) -> None:
    values = measured.values
    assert values.filter(model="told")["ndcg@10"].to_list() == [1, 1 / 2, 0, 1]
    assert values["user_id"].to_list() == [*HISTORIES, *HISTORIES]
    assert set(values["protocol_hash"]) == {measured.protocol.hash}


def test_histories_are_masked_and_lists_of_a_hundred_asked_for(four: Cases) -> None:
    told = Told(ANSWERS)
    measure({"told": told}, four, catalogue())
    assert told.asked == [(user, codes_of(HISTORIES[user]).tolist(), 100) for user in HISTORIES]


def test_chunks_change_nothing(four: Cases, measured: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 3 * len(ITEMS))
    told = Told(ANSWERS)
    again = measure({"told": told}, four, catalogue(ATTRIBUTES))
    assert again.values.equals(measured.values.filter(model="told"))
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1)
    assert measure({"told": told}, four, catalogue(ATTRIBUTES)).values.equals(again.values)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("cdd", "told recommends an item twice to user 'one'"),
        ("cda", "told recommends an item that was excluded to user 'one'"),
        ("cd", None),
    ],
)
def test_what_breaks_the_rules_is_refused(four: Cases, answer: str, message: str | None) -> None:
    told = Told({user: answer if user == "one" else "---"[: len(answer)] for user in HISTORIES})
    if message is None:
        assert measure({"told": told}, four, catalogue()).evaluation.figures["hit_rate@10/told"] == 1 / 4
    else:
        with pytest.raises(TowerlineError, match=message):
            measure({"told": told}, four, catalogue())


class Wrong:
    """Answers with an array of its own."""

    def __init__(self, answer: np.ndarray) -> None:
        self._answer = answer

    def recommend(self, rows: pl.DataFrame, exclude: list[np.ndarray], count: int) -> np.ndarray:
        return self._answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((4, 2), 11), "an item that there is not to user 'one'"),
        (np.full((4, 2), -1), "an item that there is not to user 'one'"),
        (np.ones((3, 2), dtype=np.int64), r"shape \(3, 2\), expected 100 items for 4 users"),
        (np.ones((4, 101), dtype=np.int64), r"shape \(4, 101\), expected 100 items for 4 users"),
    ],
)
def test_answers_to_another_question_are_refused(four: Cases, answer: np.ndarray, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        measure({"wrong": Wrong(answer)}, four, catalogue())


def test_right_answers_that_are_hard_to_give_are_counted_and_said() -> None:
    targets = {"one": "a-", "two": "bd", "three": "d", "four": "j"}
    trained = dict.fromkeys("abcd", 3)
    asked = told_cases(HISTORIES, targets, trained=trained)
    evaluation = evaluate({"told": Told(dict.fromkeys(HISTORIES, "hgf"))}, asked, catalogue(ATTRIBUTES))
    assert evaluation.targets == TargetCounts(all=6, untrained=2, unknown=1, met_before=2)
    assert evaluation.figures["recall@10/told"] == 0
    assert evaluation.notes == (
        "4 users are few: intervals of so small a sample are rough",
        "2 of 6 right answers are items without a training event",
        "1 of 6 right answers are unknown to the vocabulary and count as misses",
        "2 of 6 right answers were met before, are masked and count as misses",
    )


def test_a_recommender_that_gives_nothing_has_figures_that_say_so(four: Cases) -> None:
    evaluation = evaluate({"nothing": Told(dict.fromkeys(HISTORIES, "---"))}, four, catalogue(ATTRIBUTES))
    assert evaluation.figures["ndcg@10/nothing"] == evaluation.figures["coverage@10/nothing"] == 0
    assert not {"gini@10/nothing", "novelty@10/nothing", "miscalibration@10/nothing"} & set(evaluation.figures)


def test_an_evaluation_comes_back_from_json(measured: Measurements) -> None:
    assert Evaluation.model_validate_json(measured.evaluation.model_dump_json()) == measured.evaluation


MODELS = ("popularity", "item_item", "two_tower", "two_tower_ranker")


def test_every_figure_of_the_path_has_its_protocol(path: DonePath) -> None:
    assert path.evaluation.protocol == LeaveOneOut().words
    assert path.evaluation.protocol_hash == LeaveOneOut().hash
    for model in MODELS:
        for metric in ("recall@10", "ndcg@10", "mrr", "coverage@10", "gini@10", "map@10", "hit_rate@10"):
            assert 0 <= path.evaluation.figures[f"{metric}/{model}"] <= 1


def test_models_are_as_good_as_what_they_can_learn(path: DonePath) -> None:
    """Popularity knows no groups, item-item knows groups but little of order, the two-tower knows both."""
    popularity, item_item, two_tower, ranker = (path.evaluation.figures[f"ndcg@10/{model}"] for model in MODELS)
    assert item_item > 3 * popularity
    assert two_tower > 1.1 * item_item
    assert ranker > 0.98 * two_tower  # which leaves a ranker next to nothing to find
    assert path.evaluation.figures["recall@10/two_tower"] > 0.95


@pytest.mark.parametrize(
    "protocol", [LeaveOneOut(cut_off=2), GlobalTime(test_share=0.2), StrongGeneralisation(held_out_share=0.2)]
)
def test_an_oracle_reaches_the_top_and_its_opposite_the_bottom(
    planted: Planted, vocabulary: Vocabulary, protocol: LeaveOneOut | GlobalTime | StrongGeneralisation
) -> None:
    dataset = planted.dataset
    asked = cases(protocol, dataset.events(), dataset.users(), vocabulary, split=TEST, history_length=HISTORY)
    hidden = dict(zip(asked.rows["user_id"], asked.targets, strict=True))

    class Knows:
        def __init__(self, *, right: bool) -> None:
            self._right = right

        def recommend(self, rows: pl.DataFrame, exclude: list[np.ndarray], count: int) -> np.ndarray:
            lists = np.zeros((rows.height, count), dtype=np.int64)
            for row, (user, met) in enumerate(zip(rows["user_id"], exclude, strict=True)):
                wanted = [code for code in hidden[user] if code not in met]
                others = np.setdiff1d(np.arange(1, vocabulary.num_items + 1), [*hidden[user], *met])
                answer = wanted if self._right else others[:count]
                lists[row, : len(answer)] = answer
            return lists

    recommenders: dict[str, Recommends] = {"oracle": Knows(right=True), "fool": Knows(right=False)}
    evaluation = evaluate(recommenders, asked, dataset.items())
    assert evaluation.targets is not None
    assert evaluation.targets.met_before == 0
    assert evaluation.figures[f"{protocol.main_metrics[0]}/oracle"] == pytest.approx(1)
    for metric in protocol.main_metrics:
        assert evaluation.figures[f"{metric}/fool"] == 0
