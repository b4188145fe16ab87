"""Like and value of the chosen item, and the losses of the choice."""

import logging
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import TowerlineError
from tests.train.lists import CANDIDATES, USERS, random_chosen, random_inputs
from tests.train.planted import Planted
from train.models.ranker import Ranker, RankerConfig, RankerInputs, RankingBatch
from train.models.ranker_heads import ChosenEvents, Heads, HeadsConfig
from train.models.ranking import RankingModel
from train.models.retrieval import item_attribute_codes
from train.vocabulary import UNKNOWN, Vocabulary

WIDTH = 3
VALUES = torch.tensor([1.0, 2.0, 3.0, 5.0])
EVENTS = ChosenEvents(VALUES, torch.ones(4, dtype=torch.int64))
PLACES = torch.arange(USERS) % 4 * (torch.arange(USERS) != 2)


def heads_of(vocabulary: Vocabulary, chosen: ChosenEvents = EVENTS, **config: object) -> Heads:
    heads = Heads(HeadsConfig.model_validate(config), WIDTH, vocabulary)
    heads.describe_training(chosen)
    return heads


def ranker_of(planted: Planted, vocabulary: Vocabulary, config: RankerConfig) -> Ranker:
    torch.manual_seed(0)
    ranker = Ranker(config, vocabulary, item_attribute_codes(planted.dataset.items(), vocabulary)).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return ranker


@pytest.fixture
def inputs(vocabulary: Vocabulary) -> RankerInputs:
    return random_inputs(vocabulary)


def test_the_losses_by_hand(vocabulary: Vocabulary) -> None:
    """Mean 2.75: 3 and 5 are liked. The variance of the values is 2.1875."""
    heads = heads_of(vocabulary, like_weight=0.5, value_weight=2.0)
    with torch.no_grad():
        for linear in heads.linear.values():
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(torch.tensor([[1.0, 0.0, -1.0]]))
            linear.bias.fill_(0.25)
    mixed_BM = torch.tensor([[1.0, 9.0, 0.0], [0.0, 9.0, 1.0], [0.5, 9.0, 0.0], [0.0, 9.0, 0.0]])
    outputs = [1.25, -0.75, 0.75, 0.25]
    likes = [False, False, True, True]
    for found, output, liked, value in zip(heads.losses(mixed_BM, EVENTS), outputs, likes, VALUES, strict=True):
        chance = 1 / (1 + math.exp(-output))
        of_like = -math.log(chance if liked else 1 - chance)
        of_value = (output - (float(value) - 2.75) / math.sqrt(2.1875)) ** 2 / 2
        assert found.item() == pytest.approx(0.5 * of_like + 2.0 * of_value, rel=1e-5)


def test_values_stay_within_those_of_training(vocabulary: Vocabulary) -> None:
    heads = heads_of(vocabulary)
    mixed_BKM = torch.zeros(1, 2, WIDTH)
    found = heads.values(mixed_BKM)
    assert found is not None
    assert found.flatten().tolist() == pytest.approx([2.75, 2.75])
    with torch.no_grad():
        for weight in heads.linear["value"].parameters():
            weight.fill_(100)
    found = heads.values(mixed_BKM)
    assert found is not None
    assert found.flatten().tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("config", "liked"),
    [({}, [0, 0, 1, 1]), ({"like_min_value": 2}, [0, 1, 1, 1]), ({"like_min_value": 4.5}, [0, 0, 0, 1])],
)
def test_a_like_is_a_value_above_the_mean_or_the_asked_one(
    vocabulary: Vocabulary, config: dict[str, Any], liked: list[int]
) -> None:
    assert heads_of(vocabulary, **config).liked(EVENTS).tolist() == liked


def test_a_like_can_be_a_type_of_event(vocabulary: Vocabulary) -> None:
    known = Vocabulary(vocabulary.items, (), (), (), ("buy", "view"))
    chosen = ChosenEvents(VALUES, torch.tensor([2, 1, 0, 1]))
    assert heads_of(known, chosen, like_event_types=["buy"]).liked(chosen).tolist() == [0, 1, 0, 1]
    with pytest.raises(TowerlineError, match=r"like_event_types names 'order', .* name some of: buy, view"):
        heads_of(known, chosen, like_event_types=["order"])


def test_a_label_that_never_varies_is_skipped_and_said_unless_it_was_asked_for(
    vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    constant = ChosenEvents(torch.full((4,), 3.0), torch.ones(4, dtype=torch.int64))
    with caplog.at_level(logging.WARNING):
        heads = heads_of(vocabulary, constant)
    assert ["'like' is 0 in all 4" in record.getMessage() for record in caplog.records] == [True, False]
    assert "'value' is 3 in all 4" in caplog.records[1].getMessage()
    mixed_BM = torch.randn(4, WIDTH)
    losses_B = heads.losses(mixed_BM, constant)
    losses_B.sum().backward()
    assert losses_B.tolist() == [0.0] * 4
    assert all(weight.grad is not None and (weight.grad == 0).all() for weight in heads.parameters())
    assert heads.like_logits(mixed_BM.unsqueeze(1)) is None
    assert heads.values(mixed_BM.unsqueeze(1)) is None
    with pytest.raises(TowerlineError, match=r"label 'value' is 3 in all 4 training lists.*out of heads\.learn"):
        heads_of(vocabulary, constant, learn=["value"])
    with pytest.raises(TowerlineError, match=r"label 'like' is 1 in all 4 training lists.*like_min_value"):
        heads_of(vocabulary, EVENTS, learn=["like"], like_min_value=-1)


def test_heads_that_are_not_asked_for_are_not_there(vocabulary: Vocabulary) -> None:
    assert list(heads_of(vocabulary, learn=[]).parameters()) == []
    only = heads_of(vocabulary, learn=["value"])
    assert set(only.linear) == {"value"}
    assert only.like_logits(torch.zeros(1, 1, WIDTH)) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"like_min_value": 3, "like_event_types": ["buy"]}, "like_min_value is 3 and like_event_types is .*leave one"),
        ({"like_in_score": 1.0}, 'like_in_score is 1, which needs "like" among learn'),
        ({"learn": ["clicks"]}, "learn"),
        ({"like_weight": 0}, "like_weight"),
        ({"value_weight": -1}, "value_weight"),
        ({"like_min_value": math.nan}, "like_min_value"),
    ],
)
def test_bad_configurations_name_the_field(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadsConfig.model_validate(config)


def test_the_pointwise_loss_by_hand(planted: Planted, vocabulary: Vocabulary, inputs: RankerInputs) -> None:
    ranker = ranker_of(planted, vocabulary, RankerConfig(loss="pointwise_logistic"))
    ranker.describe_training(inputs, PLACES)
    present = int((inputs.candidates_BK != UNKNOWN).sum())
    assert ranker.choice_offset.item() == pytest.approx(math.log(USERS / (present - USERS)))
    expected, choice_BK = 0.0, (ranker.outputs(inputs).choice_BK + ranker.choice_offset).detach()
    for user in range(USERS):
        for place in range(CANDIDATES):
            if inputs.candidates_BK[user, place] != UNKNOWN:
                chance = 1 / (1 + math.exp(-float(choice_BK[user, place])))
                expected -= math.log(chance if place == PLACES[user] else 1 - chance)
    loss = ranker(RankingBatch(inputs, PLACES, 0.5))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-4)
    loss.backward()
    weights = {name: weight for name, weight in ranker.named_parameters() if not name.startswith("heads.")}
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights.values())


def test_the_loss_is_the_sum_of_the_choices_and_the_heads(
    planted: Planted, vocabulary: Vocabulary, inputs: RankerInputs
) -> None:
    ranker, chosen = ranker_of(planted, vocabulary, RankerConfig()), random_chosen(USERS)
    ranker.describe_training(inputs, PLACES, chosen)
    choice = ranker(RankingBatch(inputs, PLACES, 1.0))
    mixed_BKM = ranker._mixed(inputs)
    of_heads = ranker.heads.losses(mixed_BKM[torch.arange(USERS), PLACES], chosen).sum()
    assert of_heads > 0
    torch.testing.assert_close(ranker(RankingBatch(inputs, PLACES, 1.0, chosen)), choice + of_heads)


def test_the_score_can_ask_for_chosen_and_liked(planted: Planted, vocabulary: Vocabulary, inputs: RankerInputs) -> None:
    """log P(chosen and liked), but for what is the same for all candidates of a list."""
    config = RankerConfig(heads=HeadsConfig(learn=("like",), like_in_score=1.0))
    ranker = ranker_of(planted, vocabulary, config)
    ranker.describe_training(inputs, PLACES, random_chosen(USERS))
    ranker.calibrate(1.5, (0.5, 0.25))
    outputs = ranker.outputs(inputs)
    assert outputs.like_BK is not None
    expected_BK = outputs.choice_BK.softmax(dim=1) * (0.5 * outputs.like_BK + 0.25).sigmoid()
    torch.testing.assert_close(ranker.score(inputs).softmax(dim=1), expected_BK / expected_BK.sum(dim=1, keepdim=True))
    assert (ranker.score(inputs).argsort(dim=1) != outputs.choice_BK.argsort(dim=1)).any()


def test_predictions_are_calibrated_probabilities(
    planted: Planted, vocabulary: Vocabulary, inputs: RankerInputs
) -> None:
    ranker = ranker_of(planted, vocabulary, RankerConfig())
    ranker.describe_training(inputs, PLACES, random_chosen(USERS))
    ranker.calibrate(0.5, (2.0, -1.0))
    model = RankingModel(RankerConfig(), vocabulary, ranker.state_dict())
    raw, fitted = (model.predict(inputs, calibrated=calibrated) for calibrated in (False, True))
    outputs = ranker.outputs(inputs)
    present_BK = inputs.candidates_BK != UNKNOWN

    def same(found: object, expected: Tensor) -> None:
        torch.testing.assert_close(torch.as_tensor(found)[present_BK], expected.detach()[present_BK])

    assert outputs.like_BK is not None
    assert outputs.value_BK is not None
    same(raw.choice_BK, outputs.choice_BK.softmax(dim=1))
    same(fitted.choice_BK, (0.5 * outputs.choice_BK).softmax(dim=1))
    same(raw.like_BK, outputs.like_BK.sigmoid())
    same(fitted.like_BK, (2 * outputs.like_BK - 1).sigmoid())
    same(fitted.value_BK, outputs.value_BK)
    assert (fitted.choice_BK[~present_BK.numpy()] == 0).all()
