"""Each protocol's definitions, head and tail, and what has no value."""

import math

import numpy as np
import pytest

from tests.train.told import catalogue, codes_of, told_cases
from train.list_values import ListValues, accuracy_metrics
from train.protocols import LeaveOneOut, StrongGeneralisation

ONE = slice(0, 1)


def values_of(ranked: str, targets: str, **changes: object) -> dict[str, float]:
    cases = told_cases({"u": "j"}, {"u": targets}, **changes)  # type: ignore[arg-type]
    found = ListValues(cases, catalogue({"a": ["kind=1"], "j": ["kind=1"]})).of(codes_of(ranked)[np.newaxis], ONE)
    return {name: float(values[0]) for name, values in found.items()}


def test_recall_is_divided_as_the_protocol_says() -> None:
    hits = np.array([[True] * 30])
    for k in (10, 20):
        plain, truncated = (
            accuracy_metrics(protocol)[f"recall@{k}"](hits, np.array([30]))[0]
            for protocol in (LeaveOneOut(), StrongGeneralisation())
        )
        assert (plain, truncated) == (k / 30, 1)


def test_every_main_metric_is_measured() -> None:
    for protocol in (LeaveOneOut(), StrongGeneralisation()):
        assert set(protocol.main_metrics) <= set(accuracy_metrics(protocol))


def test_names_say_how_many_places_count() -> None:
    hits = np.zeros((1, 100), dtype=bool)
    hits[0, 60] = True
    values = {name: metric(hits, np.array([1]))[0] for name, metric in accuracy_metrics(LeaveOneOut()).items()}
    assert {name for name, value in values.items() if value} == {"mrr", "recall@100", "ndcg@100"}
    assert values["mrr"] == pytest.approx(1 / 61)
    assert values["ndcg@100"] == pytest.approx(1 / math.log2(62))


def test_head_and_tail_count_their_own_right_answers() -> None:
    """One item of five with events is the head: `b`, with most of them."""
    trained = {"a": 2, "b": 9, "c": 1, "d": 1, "e": 1}
    values = values_of("cbd", "bce", trained=trained)
    assert values["recall@10"] == pytest.approx(2 / 3)
    assert values["recall@10/head"] == 1
    assert values["recall@10/tail"] == pytest.approx(1 / 2)
    assert values["ndcg@10/head"] == pytest.approx(1 / math.log2(3))
    assert values["ndcg@10/tail"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert math.isnan(values_of("cbd", "ce", trained=trained)["ndcg@10/head"])


def test_an_unknown_right_answer_is_a_miss_of_the_tail() -> None:
    values = values_of("ab-", "-a")
    assert values["recall@10"] == pytest.approx(1 / 2)
    assert values["hit_rate@10"] == 1
    assert values_of("b--", "-")["recall@10/tail"] == 0


def test_only_the_shown_places_count_for_novelty_and_calibration() -> None:
    short, long = (values_of(ranked, "e") for ranked in ("abcdefghi", "abcdefghi-" + "-" * 20))
    for name in ("novelty@10", "diversity@10", "miscalibration@10"):
        assert short[name] == long[name]
        assert not math.isnan(short[name])


def test_without_attributes_there_is_neither_diversity_nor_calibration() -> None:
    cases = told_cases({"u": "j"}, {"u": "a"})
    names = set(ListValues(cases, catalogue()).of(codes_of("ab")[np.newaxis], ONE))
    assert not {"diversity@10", "miscalibration@10"} & names
    assert "novelty@10" in names
