"""What the demo promises, against figures on either side of each bound."""

import pytest

from benchmarks.our_system import RANKING, RETRIEVAL
from cluster.errors import TowerlineError
from jobs.demo import (
    CONFIG,
    OVER_POPULARITY,
    SHARE_OF_FULL,
    TRAINING_S,
    FullRun,
    demo_figures,
    quality_checks,
    require_passed,
    time_check,
)
from jobs.training import read_training_config
from train.evaluation import Evaluation
from train.protocols import LEAVE_ONE_OUT


@pytest.fixture
def full() -> FullRun:
    return FullRun.read()


def evaluation(full: FullRun, share: float, over_popularity: float = OVER_POPULARITY) -> Evaluation:
    """Of a pair that reaches this share of the full configuration's, and of a two-tower as good."""
    ndcg = share * full.figures["ndcg@10/two_tower_ranker"]
    figures = {
        "ndcg@10/popularity": ndcg / over_popularity,
        "ndcg@10/two_tower": ndcg,
        "ndcg@10/two_tower_ranker": ndcg,
    }
    return Evaluation(protocol="in words", protocol_hash=full.protocol_hash, users=943, figures=figures)


def test_the_recorded_run_is_of_the_demos_protocol_and_of_a_commit(full: FullRun) -> None:
    full.require_asked_alike(LEAVE_ONE_OUT.hash, full.data_version)
    assert "dirty" not in full.git_commit
    assert full.figures["ndcg@10/two_tower_ranker"] > full.figures["ndcg@10/two_tower"]


def test_the_configuration_is_smaller_than_the_full_one() -> None:
    config = read_training_config(CONFIG)
    assert config.retrieval.fit.epochs < RETRIEVAL.fit.epochs
    assert config.ranking.fit.epochs < RANKING.fit.epochs


def test_what_is_good_enough_passes_and_says_both_figures(full: FullRun) -> None:
    good = evaluation(full, SHARE_OF_FULL * 1.001, OVER_POPULARITY * 1.001)
    checks = quality_checks(good, full)
    require_passed(checks)
    words = "; ".join(map(str, checks))
    assert f"{good.figures['ndcg@10/two_tower_ranker']:.4f} is 90% of the full" in words
    assert f"{full.figures['ndcg@10/two_tower_ranker']:.4f} (`{full.command}`" in words
    assert f"commit {full.git_commit[:10]}" in words
    figures = demo_figures(good, full, training_s=60.0)
    assert figures["share_of_full/two_tower_ranker"] == pytest.approx(SHARE_OF_FULL * 1.001)
    assert figures["ndcg@10_full/two_tower_ranker"] == full.figures["ndcg@10/two_tower_ranker"]
    assert figures["training_s/demo"] == 60.0


@pytest.mark.parametrize(
    ("share", "over_popularity", "message"),
    [
        (SHARE_OF_FULL * 0.999, 2.0, r"is 90% of the full configuration's .* at least 90% is promised"),
        (1.0, OVER_POPULARITY * 0.99, r"at least 1\.6 x is asked for"),
    ],
)
def test_what_is_not_is_refused_with_the_numbers(
    full: FullRun, share: float, over_popularity: float, message: str
) -> None:
    with pytest.raises(TowerlineError, match=message):
        require_passed(quality_checks(evaluation(full, share, over_popularity), full))


def test_training_that_takes_too_long_is_said() -> None:
    assert time_check(TRAINING_S).passed
    late = time_check(TRAINING_S * 2)
    assert str(late) == "FAILED: training took 200 s, the search aside; at most 100 s is promised on 2 cores"


@pytest.mark.parametrize("asked", [("x" * 12, None), (None, "y" * 64)])
def test_other_questions_are_not_compared(full: FullRun, asked: tuple[str | None, str | None]) -> None:
    protocol_hash, data_version = asked[0] or full.protocol_hash, asked[1] or full.data_version
    with pytest.raises(TowerlineError, match=r"not comparable; measure it again with `python -m benchmarks\.quality"):
        full.require_asked_alike(protocol_hash, data_version)
