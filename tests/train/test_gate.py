"""What the gate lets through, on values by user that are made up: every condition alone decides."""

import numpy as np
import polars as pl
import pytest

from train.bootstrap import Interval
from train.evaluation import Evaluation
from train.gate import GateConfig, Measured, absolute_checks, judge
from train.ledger import GateReport

USERS = 200
FIGURES = {
    "ndcg@10/popularity": 0.05,
    "ndcg@10/two_tower": 0.1,
    "ndcg@10/two_tower_ranker": 0.12,
    "calibration_error/two_tower_ranker": 0.03,
    "latency_p95_ms/two_tower_ranker": 20.0,
}
BASE = np.random.default_rng(0).random(USERS) / 4
BETTER = BASE + 0.02
IS_COLD = np.arange(USERS) < 60


def measured(
    variant: str,
    values: np.ndarray = BASE,
    *,
    tail: np.ndarray | None = None,
    protocol: str = "p1",
    data: str = "d1",
    without: str = "",
    **figures: float,
) -> Measured:
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(USERS)],
            "protocol_hash": protocol,
            "model": "two_tower_ranker",
            "segments": [["cold" if cold else "warm"] + ["rare"] * (user < 5) for user, cold in enumerate(IS_COLD)],
            "ndcg@10": values,
            "ndcg@10/tail": values if tail is None else tail,
        }
    )
    kept = {name: value for name, value in {**FIGURES, **figures}.items() if name != without}
    evaluation = Evaluation(protocol="p", protocol_hash=protocol, users=USERS, figures=kept)
    return Measured(variant, data, evaluation, frame if without != "values" else frame.drop("ndcg@10"))


def failed(challenger: Measured, champion: Measured | None, **config: float) -> list[str]:
    return list(judge(challenger, champion, GateConfig.model_validate(config)).failed)


def test_better_everywhere_and_within_all_bounds_passes() -> None:
    report = judge(measured("new", BETTER), measured("old"), GateConfig())
    assert report.passed
    assert (report.variant, report.against, report.comparable, report.protocol_hash) == ("new", "old", True, "p1")
    words = [check.words for check in report.checks]
    assert words[:2] == [
        "two-tower NDCG@10 0.1000 is 2.00 x popularity's 0.0500; at least 1 x is asked for",
        "two-tower + ranker NDCG@10 0.1200 must not fall below the two-tower's 0.1000",
    ]
    assert words[3].startswith("ndcg@10 is +0.0200 against champion old (95 % interval +0.0200 to +0.0200, 200 users)")
    assert [check.segment for check in report.checks if check.segment] == ["cold", "warm", "tail"]
    assert report.lines()[-1] == "passed: no segment of these is much worse: cold, warm, tail"
    assert len(report.lines()) == len(words) - 2


def test_a_tie_is_not_better() -> None:
    (words,) = failed(measured("same"), measured("old"))
    assert words.startswith("ndcg@10 is +0.0000 against champion old")


def test_what_chance_explains_is_not_better() -> None:
    """Ahead on average, and behind for nearly every other user."""
    challenger = measured("lucky", BASE + np.where(np.arange(USERS) % 2, 0.104, -0.1))
    (words,) = failed(challenger, measured("old"))
    assert words.startswith("ndcg@10 is +0.0020 against champion old (95 % interval -0.")
    assert "all of it above zero is asked for" in words


@pytest.mark.parametrize(
    ("challenger", "words"),
    [
        (measured("new", np.where(IS_COLD, BASE * 0.7, BASE + 0.05)), "segment cold (60 users)"),
        (measured("new", BETTER, tail=BASE * 0.7), "segment tail (200 users)"),
        (
            measured("new", BETTER, **{"calibration_error/two_tower_ranker": 0.11}),
            "calibration error 0.11; at most 0.1",
        ),
        (measured("new", BETTER, **{"latency_p95_ms/two_tower_ranker": 101}), "95th percentile of the latency"),
        (measured("new", BETTER, **{"ndcg@10/two_tower": 0.049}), "two-tower NDCG@10 0.0490 is 0.98 x"),
        (measured("new", BETTER, **{"ndcg@10/two_tower": 0.121}), "two-tower + ranker NDCG@10 0.1200 must not fall"),
    ],
)
def test_each_condition_alone_stops_a_better_one(challenger: Measured, words: str) -> None:
    (found,) = failed(challenger, measured("old"))
    assert found.startswith(words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("calibration_error/two_tower_ranker", "calibration error was not measured"),
        ("latency_p95_ms/two_tower_ranker", "95th percentile of the latency for one user, in ms, was not measured"),
        ("ndcg@10/popularity", "ndcg@10 of the two-tower and of popularity: not measured"),
        ("values", "ndcg@10 by user: not measured for both"),
    ],
)
def test_what_was_not_measured_has_failed(name: str, words: str) -> None:
    (found,) = failed(measured("new", BETTER, without=name), measured("old"))
    assert found.startswith(words)


def test_a_champion_without_values_by_user_cannot_be_beaten() -> None:
    (found,) = failed(measured("new", BETTER), measured("old", without="values"))
    assert found.startswith("ndcg@10 by user: not measured for both")


def test_no_segment_large_enough_is_not_measured() -> None:
    (found,) = failed(measured("new", BETTER), measured("old"), min_segment_users=USERS + 1)
    assert found == "segments: none of 201 users or more was measured"


def test_a_loss_within_the_bound_or_by_chance_is_let_through() -> None:
    little = np.where(IS_COLD, BASE * 0.95, BASE + 0.05)
    assert failed(measured("new", little), measured("old")) == []
    assert len(failed(measured("new", little), measured("old"), max_segment_loss=0.01)) == 1
    draw = np.random.default_rng(2).permutation(BASE)
    by_chance = np.where(IS_COLD, draw, BASE + 0.05)
    assert failed(measured("new", by_chance), measured("old"), max_segment_loss=0) == []


@pytest.mark.parametrize(
    ("challenger", "words"),
    [
        (measured("new", BETTER, protocol="p2"), "measured by protocol p2, champion old by protocol p1"),
        (measured("new", BETTER, data="d2"), "measured on data version d2, champion old on d1"),
    ],
)
def test_other_questions_are_not_compared(challenger: Measured, words: str) -> None:
    """Both are named, and nothing is said about who is better."""
    report = judge(challenger, measured("old"), GateConfig())
    assert not report.comparable
    (found,) = report.failed
    assert found == f"{words}: not comparable"
    assert not any("against champion" in check.words for check in report.checks)


def test_the_first_has_only_the_absolute_conditions() -> None:
    first = measured("first", without="latency_p95_ms/two_tower_ranker")
    report = judge(first, None, GateConfig())
    assert report.passed
    assert len(report.checks) == 2
    assert report.against is None
    assert len(failed(measured("first", **{"ndcg@10/two_tower": 0.04}), None)) == 1


def test_the_bounds_are_configured() -> None:
    assert failed(measured("new", BETTER), measured("old"), max_latency_ms=19) != []
    assert failed(measured("new", BETTER), measured("old"), over_popularity=2.1) != []
    assert failed(measured("new", BETTER), measured("old"), max_calibration_error=0.02) != []


def test_a_report_survives_the_ledger() -> None:
    report = judge(measured("new", BETTER), measured("old"), GateConfig())
    assert GateReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("popularity", "two_tower", "passed"), [(0.1, 0.1601, True), (0.1, 0.159, False), (0.0, 0.1, True), (0.0, 0, False)]
)
def test_the_two_tower_alone_is_held_to_popularity(popularity: float, two_tower: float, passed: bool) -> None:
    figures = {"ndcg@10/popularity": popularity, "ndcg@10/two_tower": two_tower}
    evaluation = Evaluation(protocol="p", protocol_hash="h", users=1, figures=figures)
    assert [check.passed for check in absolute_checks(evaluation, GateConfig(over_popularity=1.6))] == [passed]


@pytest.mark.parametrize(("high", "passed"), [(0.13, True), (0.1, True), (0.099, False)])
def test_a_ranker_may_be_worse_than_its_two_tower_by_chance_alone(high: float, passed: bool) -> None:
    figures = FIGURES | {"ndcg@10/two_tower_ranker": 0.09}
    intervals = {"ndcg@10/two_tower_ranker": Interval(mean=0.09, low=0.05, high=high)}
    evaluation = Evaluation(protocol="p", protocol_hash="h", users=9, figures=figures, intervals=intervals)
    assert [check.passed for check in absolute_checks(evaluation)] == [True, passed]
