"""What a candidate finds in the history."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from tests.train.lists import CANDIDATES, EVENTS, USERS, random_chosen, random_inputs
from tests.train.planted import Planted
from train.encoding import UserBatch
from train.models.candidate_features import RETRIEVAL_SCORE
from train.models.history_attention import HistoryAttention
from train.models.ranker import Ranker, RankerConfig, RankerInputs, RankingBatch
from train.models.retrieval import item_attribute_codes
from train.models.two_tower import age_bin
from train.vocabulary import UNKNOWN, Vocabulary

DIM, HEADS = 8, 2


def randomized(module: torch.nn.Module) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.fixture
def attention(vocabulary: Vocabulary) -> HistoryAttention:
    attention = HistoryAttention(DIM, HEADS, EVENTS, 0.5, vocabulary).eval()
    randomized(attention)
    return attention


@pytest.fixture
def inputs(vocabulary: Vocabulary) -> RankerInputs:
    return random_inputs(vocabulary)


@pytest.fixture
def untrained(planted: Planted, vocabulary: Vocabulary) -> Ranker:
    torch.manual_seed(0)
    config = RankerConfig(history_heads=HEADS, history_length=EVENTS)
    return Ranker(config, vocabulary, item_attribute_codes(planted.dataset.items(), vocabulary)).eval()


@pytest.fixture
def ranker(untrained: Ranker) -> Ranker:
    randomized(untrained)
    untrained.item_seen_I1[1:] = 1
    return untrained


def tensors(users: UserBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of candidates and events, and their cosines."""
    generator = torch.Generator().manual_seed(7)
    length = users.history_BL.shape[1]
    return (
        torch.randn(len(users), CANDIDATES, DIM, generator=generator),
        torch.randn(len(users), length, DIM, generator=generator),
        torch.rand(len(users), CANDIDATES, length, generator=generator),
    )


def test_attention_by_hand(attention: HistoryAttention, inputs: RankerInputs) -> None:
    """One candidate, one head at a time, with nothing but the definition."""
    attention.describe_training(inputs.users)
    candidates_BKD, events_BLD, cosines_BKL = tensors(inputs.users)
    found_BKD = attention(candidates_BKD, events_BLD, inputs.users, cosines_BKL)
    width = DIM // HEADS
    for user, candidate in ((3, 0), (EVENTS, 2), (EVENTS + 2, 5)):
        query_D = attention.query(attention.candidate_norm(candidates_BKD[user, candidate]))
        present = [place for place in range(EVENTS) if inputs.users.history_BL[user, place] != UNKNOWN]
        assert present
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            weight_sum, mean = torch.ones(()), torch.zeros(width)
            for place in present:
                event_D = events_BLD[user, place] + attention.position.weight[place]
                event_D = event_D + attention.age.weight[age_bin(inputs.users.history_ages_BL[user, place])]
                event_D = event_D + attention.value.weight[int(inputs.users.history_values_BL[user, place])]
                event_D = event_D + attention.event_type.weight[int(inputs.users.history_types_BL[user, place])]
                parts_HE = attention.key_value(attention.event_norm(event_D)).view(HEADS, 2 * width)
                key_E, value_E = parts_HE[head, :width], parts_HE[head, width:]
                logit = query_D[part] @ key_E / width**0.5
                logit = logit + attention.sharpness_H[head] * cosines_BKL[user, candidate, place]
                weight_sum, mean = weight_sum + logit.exp(), mean + logit.exp() * value_E
            torch.testing.assert_close(found_BKD[user, candidate, part], mean / weight_sum, rtol=1e-4, atol=1e-5)


def test_a_user_without_events_gets_zeros_and_scores(
    attention: HistoryAttention, ranker: Ranker, inputs: RankerInputs
) -> None:
    found_BKD = attention(*tensors(inputs.users)[:2], inputs.users, tensors(inputs.users)[2])
    assert (inputs.users.history_BL[0] == UNKNOWN).all()
    assert (found_BKD[0] == 0).all()
    assert (found_BKD[1:].reshape(USERS - 1, -1).abs().sum(dim=1) > 0).sum() == USERS - 1 - (USERS - 1) // (EVENTS + 1)
    assert ranker.score(inputs)[0].isfinite().all()


def test_padding_changes_nothing(ranker: Ranker, inputs: RankerInputs) -> None:
    """More of it before the events, or other numbers in it; fewer places, if they are empty."""
    users = inputs.users
    absent_BL = users.history_BL == UNKNOWN
    noise = replace(users, history_ages_BL=users.history_ages_BL.masked_fill(absent_BL, 1e9))
    expected_BK = ranker.score(inputs)
    torch.testing.assert_close(ranker.score(replace(inputs, users=noise)), expected_BK)
    names = ("history_BL", "history_values_BL", "history_types_BL", "history_ages_BL")
    wide = replace(users, **{name: functional.pad(getattr(users, name), (3, 0)) for name in names})
    torch.testing.assert_close(ranker.score(replace(inputs, users=wide)), expected_BK)
    two = inputs[torch.tensor([2])]
    torch.testing.assert_close(ranker.score(replace(two, users=two.users.recent(2))), expected_BK[2:3])


def test_a_user_is_scored_alone_as_among_others(ranker: Ranker, inputs: RankerInputs) -> None:
    order = torch.randperm(USERS, generator=torch.Generator().manual_seed(0))
    together_BK = ranker.score(inputs)
    torch.testing.assert_close(ranker.score(inputs[order]), together_BK[order])
    torch.testing.assert_close(ranker.score(inputs[torch.tensor([9])]), together_BK[9:10])


def test_an_event_older_than_any_in_training_counts_as_that_old(ranker: Ranker, inputs: RankerInputs) -> None:
    ranker.describe_training(inputs, torch.zeros(USERS, dtype=torch.int64))
    oldest = inputs.users.history_ages_BL.max()
    ages_BL = inputs.users.history_ages_BL

    def scores_with(age: Tensor) -> Tensor:
        users = replace(inputs.users, history_ages_BL=torch.where(ages_BL > 0, age, ages_BL))
        return ranker.score(replace(inputs, users=users))

    torch.testing.assert_close(scores_with(oldest * 1000), scores_with(oldest))
    assert not torch.allclose(scores_with(oldest / 1000), scores_with(oldest))


def test_an_untrained_ranker_keeps_the_order_of_retrieval(untrained: Ranker, inputs: RankerInputs) -> None:
    present_BK = inputs.candidates_BK != UNKNOWN
    torch.testing.assert_close(
        untrained.score(inputs)[present_BK], inputs.candidate_features_BKF[:, :, RETRIEVAL_SCORE][present_BK]
    )


def test_history_decides_and_every_weight_learns(ranker: Ranker, inputs: RankerInputs) -> None:
    without = replace(inputs, users=inputs.users.without_history())
    moved_BK = ranker.score(inputs) != ranker.score(without)
    assert moved_BK[inputs.candidates_BK != UNKNOWN].float().mean() > 0.8
    ranker(RankingBatch(inputs, torch.zeros(USERS, dtype=torch.int64), 1.0, random_chosen(USERS))).backward()
    for name, weight in ranker.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    assert ranker.history.sharpness_H.grad is not None
    assert (ranker.history.sharpness_H.grad != 0).all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="embedding_dim is 8, expected a multiple of history_heads, 3"):
        RankerConfig(history_heads=3)
    with pytest.raises(ValidationError, match="history_length"):
        RankerConfig(history_length=0)
