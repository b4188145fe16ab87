from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data.offline.store import read_examples
from tests.train.lists import CANDIDATES, USERS, random_chosen, random_inputs
from tests.train.planted import Planted
from train.models.candidate_features import CANDIDATE_FEATURES, RETRIEVAL_SCORE, Codes, Floats
from train.models.ranker import Ranker, RankerConfig, RankerInputs, RankingBatch
from train.models.ranking import RankingModel, ranker_inputs
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.vocabulary import UNKNOWN, Vocabulary

Found = tuple[pl.DataFrame, tuple[Codes, Floats, Floats]]


@pytest.fixture
def untrained(planted: Planted, vocabulary: Vocabulary) -> Ranker:
    torch.manual_seed(0)
    return Ranker(RankerConfig(), vocabulary, item_attribute_codes(planted.dataset.items(), vocabulary)).eval()


@pytest.fixture
def ranker(untrained: Ranker) -> Ranker:
    """One whose random weights reorder what it gets."""
    with torch.no_grad():
        for parameter in untrained.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    untrained.item_seen_I1[1:] = 1
    return untrained


@pytest.fixture
def inputs(vocabulary: Vocabulary) -> RankerInputs:
    return random_inputs(vocabulary)


def test_an_untrained_ranker_keeps_the_order_of_retrieval(untrained: Ranker, inputs: RankerInputs) -> None:
    logits_BK = untrained.score(inputs)
    order_BK = logits_BK.argsort(dim=1, descending=True, stable=True)
    assert (order_BK == torch.arange(CANDIDATES)).all()
    present_BK = inputs.candidates_BK != UNKNOWN
    torch.testing.assert_close(logits_BK[present_BK], inputs.candidate_features_BKF[:, :, RETRIEVAL_SCORE][present_BK])


def test_weights_make_another_order(ranker: Ranker, inputs: RankerInputs) -> None:
    assert (ranker.score(inputs).argsort(dim=1, descending=True) != torch.arange(CANDIDATES)).any()


def test_where_there_is_no_candidate_there_is_no_chance(ranker: Ranker, inputs: RankerInputs) -> None:
    logits_BK = ranker.score(inputs)
    absent_BK = inputs.candidates_BK == UNKNOWN
    assert absent_BK.sum() == 3 + 6
    assert logits_BK[absent_BK].isneginf().all()
    assert logits_BK[~absent_BK].isfinite().all()
    assert (~absent_BK).gather(1, logits_BK.argmax(dim=1, keepdim=True)).all()


def test_padding_takes_no_part_in_the_loss(ranker: Ranker, inputs: RankerInputs) -> None:
    short = inputs[torch.tensor([1])]
    cut = replace(
        short, candidates_BK=short.candidates_BK[:, :4], candidate_features_BKF=short.candidate_features_BKF[:, :4]
    )
    place = torch.tensor([2])
    chosen = random_chosen(1)
    loss = ranker(RankingBatch(short, place, 1.0, chosen))
    loss.backward()
    torch.testing.assert_close(loss, ranker(RankingBatch(cut, place, 1.0, chosen)))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in ranker.parameters())


def test_the_loss_by_hand(ranker: Ranker, inputs: RankerInputs) -> None:
    places = torch.zeros(USERS, dtype=torch.int64)
    probabilities_BK = ranker.score(inputs).detach().double().exp()
    expected = -(probabilities_BK[:, 0] / probabilities_BK.sum(dim=1)).log().sum() / 3
    assert ranker(RankingBatch(inputs, places, 1 / 3)).item() == pytest.approx(float(expected), rel=1e-5)


def test_candidates_are_scored_independently_of_their_neighbours(ranker: Ranker, inputs: RankerInputs) -> None:
    order = torch.randperm(CANDIDATES)
    turned = replace(
        inputs,
        candidates_BK=inputs.candidates_BK[:, order],
        candidate_features_BKF=inputs.candidate_features_BKF[:, order],
    )
    torch.testing.assert_close(ranker.score(turned), ranker.score(inputs)[:, order])


def test_features_outside_of_what_training_saw_count_as_its_edge(ranker: Ranker, inputs: RankerInputs) -> None:
    ranker.describe_training(inputs, torch.zeros(USERS, dtype=torch.int64))
    column = CANDIDATE_FEATURES.index("item_log_seconds_since_last")
    present_BK = inputs.candidates_BK != UNKNOWN
    values = inputs.candidate_features_BKF[:, :, column][present_BK]

    def scores_at(value: float) -> torch.Tensor:
        features_BKF = inputs.candidate_features_BKF.clone()
        features_BKF[:, :, column] = value
        return ranker.score(replace(inputs, candidate_features_BKF=features_BKF))

    torch.testing.assert_close(scores_at(1e9), scores_at(values.max().item()))
    torch.testing.assert_close(scores_at(-1e9), scores_at(values.min().item()))
    assert (scores_at(values.max().item()) - scores_at(values.min().item()))[present_BK].abs().max() > 1e-2

    def scores_of(users: torch.Tensor) -> torch.Tensor:
        return ranker.score(replace(inputs, user_features_BF=users))

    highest_F = inputs.user_features_BF.amax(dim=0).expand(USERS, -1)
    torch.testing.assert_close(scores_of(highest_F + 1e6), scores_of(highest_F))


def test_the_range_of_features_is_that_of_real_candidates(ranker: Ranker, inputs: RankerInputs) -> None:
    ranker.describe_training(inputs, torch.zeros(USERS, dtype=torch.int64))
    real_NF = inputs.candidate_features_BKF[inputs.candidates_BK != UNKNOWN].double()
    expected = torch.stack([real_NF.mean(0), real_NF.std(0, correction=0), real_NF.amin(0), real_NF.amax(0)])
    torch.testing.assert_close(ranker.candidate_range_4F.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_feature_gives_finite_scores(ranker: Ranker, inputs: RankerInputs) -> None:
    features_BKF = inputs.candidate_features_BKF.clone()
    features_BKF[:, :, 3] = 4.2
    constant = replace(inputs, candidate_features_BKF=features_BKF)
    ranker.describe_training(constant, torch.zeros(USERS, dtype=torch.int64))
    assert ranker.score(constant)[inputs.candidates_BK != UNKNOWN].isfinite().all()


def test_an_item_that_training_never_chose_is_scored_without_its_id(ranker: Ranker, inputs: RankerInputs) -> None:
    places = torch.zeros(USERS, dtype=torch.int64)
    ranker.item_seen_I1.zero_()
    ranker.describe_training(inputs, places)
    chosen = set(inputs.candidates_BK[:, 0].tolist())
    seen_BK = torch.tensor([[code in chosen for code in codes] for codes in inputs.candidates_BK.tolist()])
    present_BK = inputs.candidates_BK != UNKNOWN
    before = ranker.score(inputs)
    with torch.no_grad():
        ranker.item.weight += 3
    moved_BK = ranker.score(inputs) != before
    assert not moved_BK[~seen_BK].any()
    assert moved_BK[seen_BK & present_BK].all()
    assert (~seen_BK & present_BK).sum() > 10


@pytest.fixture
def found(random_retrieval: RetrievalModel, planted: Planted) -> Found:
    rows = read_examples(planted.folder)[-50:]
    codes_BK, scores_BK = random_retrieval.index.search(random_retrieval.encode_users(rows), 10)
    return rows, (codes_BK, scores_BK, np.random.default_rng(0).random((50, 10, 4), dtype=np.float32))


def test_a_saved_ranker_gives_identical_scores(
    ranker: Ranker,
    random_retrieval: RetrievalModel,
    found: Found,
    tmp_path: Path,
) -> None:
    rows, lists = found
    ranker.describe_training(ranker_inputs(rows, *lists, random_retrieval), torch.zeros(50, dtype=torch.int64))
    model = RankingModel(RankerConfig(), random_retrieval.vocabulary, ranker.state_dict())
    model.save(tmp_path)
    loaded = RankingModel.load(tmp_path)
    assert loaded.vocabulary == model.vocabulary
    expected = model.score(rows, *lists, random_retrieval)
    np.testing.assert_array_equal(loaded.score(rows, *lists, random_retrieval), expected)
    assert (np.argsort(-expected, axis=1) != np.arange(10)).any()


def test_a_request_alone_is_scored_as_in_a_batch(
    ranker: Ranker, random_retrieval: RetrievalModel, found: Found
) -> None:
    rows, lists = found
    model = RankingModel(RankerConfig(), random_retrieval.vocabulary, ranker.state_dict())
    together = model.score(rows, *lists, random_retrieval)
    for row in range(0, 50, 7):
        one = slice(row, row + 1)
        alone = model.score(rows[one], lists[0][one], lists[1][one], lists[2][one], random_retrieval)
        np.testing.assert_allclose(alone, together[one], rtol=1e-4, atol=1e-5)
