import numpy as np
import polars as pl
import pytest

from data.splits import TEST
from tests.train.conftest import DonePath
from train.candidates import ItemFeatures
from train.models.ranking import RankingModel
from train.pair import RankedRecommender
from train.pair_figures import area_under_curve, expected_calibration_error, prediction_figures


def test_the_error_is_the_gap_of_each_bin_weighted_by_its_size() -> None:
    """By hand: .9 and .95 with one right of two (gap .425), .2 with none right of two (gap .2)."""
    confidence = np.array([0.9, 0.95, 0.2, 0.2])
    is_right = np.array([True, False, False, False])
    assert expected_calibration_error(confidence, is_right) == pytest.approx((0.425 * 2 + 0.2 * 2) / 4)


def test_what_keeps_its_word_has_no_error() -> None:
    confidence = np.repeat([0.25, 1.0], [8, 3])
    is_right = np.array([True, True, *[False] * 6, True, True, True])
    assert expected_calibration_error(confidence, is_right) == pytest.approx(0)
    assert expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)) is None


def test_the_comparison_measures_the_pair(path: DonePath) -> None:
    figures = path.evaluation.figures
    assert 0 <= figures["calibration_error/two_tower_ranker"] <= 1
    assert figures["latency_p95_ms/two_tower_ranker"] > 0
    assert "latency_p95_ms/two_tower" not in figures
    for name in ("calibration_error", "like_calibration_error"):
        assert figures[f"{name}/two_tower_ranker"] != figures[f"{name}_before/two_tower_ranker"]
    assert 0 <= figures["like_auc/two_tower_ranker"] <= 1
    assert 0 < figures["value_rmse/two_tower_ranker"] < 4


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])
    assert area_under_curve(scores, labels) == pytest.approx(3.5 / 4)
    assert area_under_curve(scores, ~labels) == pytest.approx(0.5 / 4)
    assert area_under_curve(scores, np.ones(4, dtype=bool)) is None


def test_predictions_are_judged_by_the_events_that_are_asked_for(path: DonePath) -> None:
    """The same figures, a case at a time; what was not learnt has none."""
    workflow, model, retrieval = path.workflow, path.ranking.model, path.retrieval.model
    pair = RankedRecommender(retrieval, model, ItemFeatures(workflow.known_events, retrieval.vocabulary), 5)
    asked, answers = workflow.cases(retrieval.vocabulary), workflow.known_events.filter(pl.col("split") == TEST)
    figures = prediction_figures(pair, model, asked, answers)
    errors, chances, likes = [], [], []
    for case in range(len(asked)):
        inputs = pair.lists(asked.rows[case : case + 1], asked.exclude[case : case + 1])
        codes = inputs.candidates_BK[0].tolist()
        event = answers.filter(pl.col("user_id") == asked.rows["user_id"][case]).row(0, named=True)
        code = retrieval.vocabulary.item_code(event["item_id"])
        if code in codes:
            found = model.predict(inputs)
            assert found.like_BK is not None
            assert found.value_BK is not None
            errors.append(found.value_BK[0, codes.index(code)] - event["value"])
            chances.append(found.like_BK[0, codes.index(code)])
            likes.append(event["value"] >= 4)
    assert 20 < len(errors) < len(asked)
    assert float(model.network.heads.like_min_value) == 4
    assert figures["value_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert figures["like_auc"] == pytest.approx(area_under_curve(np.array(chances), np.array(likes)), abs=1e-3)

    unlearnt = RankingModel(model.config, model.vocabulary, model.network.state_dict())
    unlearnt.network.heads.learnt_2.zero_()
    assert set(prediction_figures(pair, unlearnt, asked, answers)) == {"calibration_error", "calibration_error_before"}
