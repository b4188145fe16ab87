from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data.offline.store import read_examples
from data.splits import TEST, TRAIN
from tests.train.conftest import DonePath
from tests.train.planted import Planted
from train.candidates import ItemFeatures
from train.encoding import UserBatch
from train.models.candidate_features import CANDIDATE_FEATURES, RETRIEVAL_SCORE, USER_FEATURES
from train.models.lightgbm_ranker import LightGBMConfig, LightGBMRanking, train_lightgbm
from train.models.ranker import RankerInputs
from train.pair import RankedRecommender
from train.ranking import RankingConfig, ranking_task, with_sources
from train.ranking_lists import read_lists
from train.vocabulary import UNKNOWN

CONFIG = LightGBMConfig(trees=60, patience=10, learning_rate=0.1, leaf_candidates=20)
RIGHT = CANDIDATE_FEATURES.index("similarity_to_last")


def made_up_lists(number: int, seed: int) -> tuple[RankerInputs, np.ndarray]:
    """Lists of 3 to 12 candidates: the one most similar to the last item is chosen. The first list says nothing."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 13, number)
    present = np.arange(12) < lengths[:, np.newaxis]
    features = random.standard_normal((number, 12, len(CANDIDATE_FEATURES))).astype(np.float32)
    features[:, :, RETRIEVAL_SCORE] = -np.sort(-features[:, :, RETRIEVAL_SCORE], axis=1)
    positive = np.where(present, features[:, :, RIGHT], -np.inf).argmax(axis=1)
    positive[0] = -1
    inputs = RankerInputs(
        users=nobody(number),
        user_features_BF=torch.from_numpy(random.standard_normal((number, len(USER_FEATURES))).astype(np.float32)),
        candidates_BK=torch.from_numpy(np.where(present, random.integers(1, 99, (number, 12)), UNKNOWN)),
        candidate_features_BKF=torch.from_numpy(features),
        item_directions_ID=torch.zeros((99, 1)),
    )
    return inputs, positive


def nobody(number: int) -> UserBatch:
    """Users of whom nothing is known."""
    nothing = torch.zeros((number, 1), dtype=torch.int32)
    return UserBatch(nothing, nothing.to(torch.int8), nothing.to(torch.int16), nothing.float(), nothing)


@pytest.fixture(scope="module")
def trees() -> LightGBMRanking:
    return train_lightgbm(made_up_lists(400, 0), made_up_lists(100, 1), CONFIG)


def test_what_decides_is_found(trees: LightGBMRanking) -> None:
    inputs, positive = made_up_lists(300, 2)
    first = trees.score_inputs(inputs).argmax(axis=1)
    assert (first == positive)[1:].mean() > 0.8
    gains = dict(zip(trees.trees.feature_name(), trees.trees.feature_importance("gain"), strict=True))
    assert max(gains, key=gains.__getitem__) == "similarity_to_last"
    assert set(gains) == {*USER_FEATURES, *CANDIDATE_FEATURES}


def test_where_there_is_no_candidate_there_is_no_score(trees: LightGBMRanking) -> None:
    inputs, _ = made_up_lists(50, 3)
    scores = trees.score_inputs(inputs)
    np.testing.assert_array_equal(np.isneginf(scores), inputs.candidates_BK.numpy() == UNKNOWN)


def test_the_same_lists_give_the_same_trees(trees: LightGBMRanking) -> None:
    again = train_lightgbm(made_up_lists(400, 0), made_up_lists(100, 1), CONFIG)
    assert again.trees.model_to_string() == trees.trees.model_to_string()


def test_what_is_kept_scores_as_before(trees: LightGBMRanking, tmp_path: Path) -> None:
    trees.save(tmp_path)
    kept = LightGBMRanking.load(tmp_path)
    inputs, _ = made_up_lists(50, 4)
    assert kept.config == CONFIG
    np.testing.assert_array_equal(kept.score_inputs(inputs), trees.score_inputs(inputs))


def test_lists_without_the_chosen_item_say_nothing(trees: LightGBMRanking) -> None:
    inputs, positive = made_up_lists(400, 0)
    without_first = inputs[torch.arange(1, 400)], positive[1:]
    again = train_lightgbm(without_first, made_up_lists(100, 1), CONFIG)
    assert again.trees.model_to_string() == trees.trees.model_to_string()


def test_it_ranks_the_candidates_that_our_ranker_ranks(path: DonePath, planted: Planted, tmp_path: Path) -> None:
    """From the same files, and behind the same retrieval."""
    examples, retrieval = read_examples(planted.folder), path.retrieval.model
    config = RankingConfig(num_candidates=20)
    task = ranking_task(
        planted.dataset,
        examples,
        config,
        past_retrieval=path.past.model,
        retrieval=retrieval,
        folder=tmp_path,
    )
    lists = [read_lists(task.lists / f"{name}.safetensors") for name in ("train", "validation")]
    learnt, validation = ((each.inputs, each.positive_B.numpy()) for each in lists)
    ranking = train_lightgbm(learnt, validation, CONFIG, config.ensemble.score_names)
    beside = with_sources(retrieval, config, examples.filter(pl.col("split") == TRAIN))
    rows = examples.filter(pl.col("split") == TEST)[:60]
    items = ItemFeatures(planted.dataset.events(), retrieval.vocabulary)
    nothing = [np.array([], dtype=np.int64)] * rows.height
    recommender = RankedRecommender(beside, ranking, items, 20)
    answers = recommender.recommend(rows, nothing, 20)
    codes, scores = recommender.score(rows, nothing)
    np.testing.assert_array_equal(answers, np.take_along_axis(codes, np.argsort(-scores, kind="stable"), axis=1))
    candidates = retrieval.index.search(retrieval.encode_users(rows), 20, nothing)[0]
    np.testing.assert_array_equal(np.sort(answers), np.sort(candidates))
    assert (answers != candidates).mean() > 0.03
