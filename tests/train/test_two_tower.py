import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from data.offline.store import read_examples
from tests.train.planted import NEVER_CHOSEN, Planted, batches, item_id
from train.encoding import UserBatch, encode_users
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.models.two_tower import RetrievalBatch, TwoTower, TwoTowerConfig, sampling_probabilities
from train.retrieval import RetrievalConfig, RetrievalTask, retrieval_task
from train.vocabulary import UNKNOWN, Vocabulary


@pytest.fixture(scope="module")
def examples(planted: Planted) -> pl.DataFrame:
    return read_examples(planted.folder)


@pytest.fixture
def users(examples: pl.DataFrame, vocabulary: Vocabulary) -> UserBatch:
    """64 users with histories of all lengths, the first of them empty."""
    rows = examples.sort("user_event_count")[:: examples.height // 64][:64]
    assert rows["user_event_count"][0] == 0
    return encode_users(rows, vocabulary, 8)


def test_a_user_without_history_has_a_finite_vector(network: TwoTower, users: UserBatch) -> None:
    vectors_BD = network.encode_users(users)
    assert users[:1].history_BL.count_nonzero() == 0
    assert vectors_BD.isfinite().all()
    nothing = UserBatch(*(torch.zeros_like(tensor) for tensor in vars(users[:1]).values()))
    assert network.encode_users(nothing).isfinite().all()
    network.train()
    loss = network(RetrievalBatch(nothing, torch.tensor([1]), 1.0))
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_padding_changes_nothing(network: TwoTower, users: UserBatch) -> None:
    """Whatever lies in padded positions, the vector is the same."""
    scribbled = dataclasses.replace(
        users, history_ages_BL=torch.where(users.history_BL == UNKNOWN, 1e6, users.history_ages_BL)
    )
    some = users.history_BL[:, -1] != UNKNOWN
    assert some.sum() > 40
    torch.testing.assert_close(network.encode_users(users)[some], network.encode_users(scribbled)[some])


def test_history_attributes_values_and_ages_all_matter(network: TwoTower, users: UserBatch) -> None:
    full = users[users.history_BL[:, 0] != UNKNOWN]
    before = network.encode_users(full)
    for field, changed in (
        ("history_BL", full.history_BL.flip(1)),
        ("history_values_BL", (full.history_values_BL % 3 + 1).to(torch.int8)),
        ("history_types_BL", torch.zeros_like(full.history_types_BL)),
        ("history_ages_BL", full.history_ages_BL * 50),
        ("attributes_BA", torch.where(full.attributes_BA > 0, full.attributes_BA % 3 + 1, full.attributes_BA)),
    ):
        difference = (network.encode_users(dataclasses.replace(full, **{field: changed})) - before).abs().amax(dim=1)
        assert (difference > 1e-3).sum() > len(full) / 4, field


def test_the_last_column_adds_the_items_bias(network: TwoTower, users: UserBatch) -> None:
    assert (network.encode_users(users)[:, -1] == 1).all()
    assert network.encode_items().shape[1] == network.config.embedding_dim + 1


def test_an_item_never_chosen_is_placed_by_its_attributes_alone(network: TwoTower, vocabulary: Vocabulary) -> None:
    one, two = (vocabulary.item_code(item) for item in NEVER_CHOSEN)
    known = vocabulary.item_code(item_id(0, 3))
    before = network.encode_items()
    torch.testing.assert_close(before[one], before[two], rtol=0, atol=0)
    assert before[one].abs().sum() > 0.1
    with torch.no_grad():
        network.item.weight[[one, known]] += 5
        network.popularity.weight[[one, known]] += 5
    after = network.encode_items()
    torch.testing.assert_close(after[one], before[one], rtol=0, atol=0)
    assert (after[known] - before[known]).abs().amin() > 1
    with torch.no_grad():
        network.item_attribute.weight[vocabulary.item_attributes.index("group=0") + 1] += 1
    assert (network.encode_items()[one] - before[one]).abs()[:-1].amin() > 0.5


def test_ages_beyond_those_of_training_count_as_the_longest_one(network: TwoTower, users: UserBatch) -> None:
    full = users[users.history_BL[:, 0] != UNKNOWN]
    at_limit = dataclasses.replace(full, history_ages_BL=torch.full_like(full.history_ages_BL, 86400.0))
    years = dataclasses.replace(full, history_ages_BL=torch.full_like(full.history_ages_BL, 3e8))
    network.describe_training(torch.tensor([1]), at_limit)
    torch.testing.assert_close(network.encode_users(years), network.encode_users(at_limit), rtol=0, atol=0)
    network.describe_training(torch.tensor([1]), years)
    assert (network.encode_users(years) - network.encode_users(at_limit)).abs().amax() > 1e-3


def test_the_full_softmax_loss_by_hand(network: TwoTower, users: UserBatch) -> None:
    targets_B = torch.arange(len(users)) % network.encode_items().shape[0]
    targets_B[targets_B == UNKNOWN] = 1
    logits_BI = (network.encode_users(users) @ network.encode_items().T).detach().double()
    expected = sum(
        float(torch.logsumexp(logits_I[1:], 0) - logits_I[target])
        for logits_I, target in zip(logits_BI, targets_B, strict=True)
    )
    assert network(RetrievalBatch(users, targets_B, 0.5)).item() == pytest.approx(expected * 0.5, rel=1e-5)


def _full_and_sampled(
    network: TwoTower, vocabulary: Vocabulary, users: UserBatch, negatives_N: Tensor
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Losses and gradients of the two softmaxes when every item has been chosen."""
    targets_B = torch.arange(len(users)) * 7 % vocabulary.num_items + 1
    losses, gradients = [], []
    for negatives in (None, negatives_N):
        network.zero_grad()
        loss = network(RetrievalBatch(users, targets_B, 1 / len(users), negatives))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([one_or_fail(weight.grad).clone() for weight in (network.item.weight, network.query.weight)])
    return losses[0], losses[1], gradients[0], gradients[1]


def test_the_sampled_softmax_over_every_item_once_is_the_full_one(
    network: TwoTower, vocabulary: Vocabulary, users: UserBatch
) -> None:
    network.config = network.config.model_copy(update={"sampling_power": 0.0})
    network.item_frequency_I[1:] = torch.arange(1, vocabulary.num_items + 1)
    everything_N = torch.arange(1, vocabulary.num_items + 1)
    full, sampled, full_gradients, sampled_gradients = _full_and_sampled(network, vocabulary, users, everything_N)
    torch.testing.assert_close(sampled, full)
    torch.testing.assert_close(sampled_gradients, full_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_the_sampled_softmax_tends_to_the_full_one_whatever_the_sampler(
    network: TwoTower, vocabulary: Vocabulary, users: UserBatch, power: float
) -> None:
    """logQ undoes the sampler: popular items are drawn more often and each draw weighs less."""
    network.config = network.config.model_copy(update={"sampling_power": power})
    network.item_frequency_I[1:] = torch.linspace(1, 5, vocabulary.num_items)
    probabilities_I = sampling_probabilities(network.item_frequency_I, power)
    assert probabilities_I[1:].max() / probabilities_I[1:].min() == pytest.approx(5**power)
    generator = torch.Generator().manual_seed(0)
    negatives_N = torch.multinomial(probabilities_I, 100_000, replacement=True, generator=generator)
    full, sampled, full_gradients, sampled_gradients = _full_and_sampled(network, vocabulary, users, negatives_N)
    torch.testing.assert_close(sampled, full, rtol=0.02, atol=0)
    for mine, other in zip(sampled_gradients, full_gradients, strict=True):
        assert (mine - other).norm() < 0.05 * other.norm()


def test_the_other_targets_of_a_batch_stand_for_all_items_in_proportion_to_their_frequency(
    network: TwoTower, vocabulary: Vocabulary, users: UserBatch
) -> None:
    network.config = network.config.model_copy(update={"loss": "in_batch_softmax"})
    network.item_frequency_I[1:] = torch.arange(1, vocabulary.num_items + 1)
    targets_N = torch.arange(1, vocabulary.num_items + 1).repeat_interleave(
        torch.arange(1, vocabulary.num_items + 1)
    )  # each item as often as its frequency says
    full, in_batch, full_gradients, in_batch_gradients = _full_and_sampled(network, vocabulary, users, targets_N)
    torch.testing.assert_close(in_batch, full)
    torch.testing.assert_close(in_batch_gradients, full_gradients, rtol=1e-4, atol=1e-6)
    network.config = network.config.model_copy(update={"logq_correction": False})
    biased = _full_and_sampled(network, vocabulary, users, targets_N)[1]
    assert (biased - full).abs() > 0.1


def test_a_tower_that_does_not_read_the_history_does_not_know_it(network: TwoTower, users: UserBatch) -> None:
    network.config = network.config.model_copy(update={"inputs": ("attributes", "title")})
    vectors_BD = network.encode_users(users)
    torch.testing.assert_close(vectors_BD, network.encode_users(users.without_history()))
    assert vectors_BD.std(dim=0)[:-1].min() > 1e-3


@pytest.mark.parametrize("blocks", [1, 2])
def test_every_weight_of_the_blocks_over_the_history_learns(
    planted: Planted, vocabulary: Vocabulary, users: UserBatch, blocks: int
) -> None:
    torch.manual_seed(0)
    config = TwoTowerConfig(embedding_dim=16, history_length=8, causal_blocks=blocks)
    network = TwoTower(config, vocabulary, item_attribute_codes(planted.dataset.items(), vocabulary))
    assert len(network.blocks) == blocks
    loss = network(RetrievalBatch(users, torch.ones(len(users), dtype=torch.long), 1.0))
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_negatives_are_drawn_by_frequency_and_never_of_what_was_not_chosen() -> None:
    probabilities = sampling_probabilities(torch.tensor([0.0, 1.0, 16.0, 0.0]), 0.5)
    torch.testing.assert_close(probabilities, torch.tensor([0.0, 0.2, 0.8, 0.0]))
    uniform = sampling_probabilities(torch.tensor([0.0, 1.0, 16.0, 0.0]), 0.0)
    torch.testing.assert_close(uniform, torch.tensor([0.0, 0.5, 0.5, 0.0]))


def test_dropout_is_for_training_only(network: TwoTower, users: UserBatch) -> None:
    torch.testing.assert_close(network.encode_users(users), network.encode_users(users), rtol=0, atol=0)
    network.train()
    assert (network.encode_users(users) - network.encode_users(users)).abs().amax() > 1e-3
    assert (network.encode_items() - network.encode_items()).abs().amax() > 1e-3


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"embedding_dim.*63.*multiple of attention_heads.*2"):
        TwoTowerConfig(embedding_dim=63, attention_heads=2)


def task_of(planted: Planted, **two_tower: object) -> RetrievalTask:
    """The planted task without dropout, in batches that do not divide the examples."""
    shape = {"embedding_dim": 16, "history_length": 8, "dropout": 0.0, "id_dropout": 0.0, "num_negatives": 30}
    values = {"two_tower": shape | two_tower, "batch_size": 100, "seed": 5}
    return RetrievalTask(retrieval_task(planted.dataset, planted.folder, RetrievalConfig.model_validate(values)))


@pytest.fixture(scope="module", params=["full_softmax", "sampled_softmax", "in_batch_softmax"])
def task(request: pytest.FixtureRequest, planted: Planted) -> RetrievalTask:
    return task_of(planted, loss=request.param)


def _seen(batches: Iterator[RetrievalBatch]) -> list[tuple[int, tuple[int, ...], tuple[float, ...]]]:
    return [
        (int(target), tuple(history.tolist()), tuple(ages.tolist()))
        for batch in batches
        for target, history, ages in zip(
            batch.target_B, batch.users.history_BL, batch.users.history_ages_BL, strict=True
        )
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_example_is_seen_once_per_epoch(
    task: RetrievalTask, examples: pl.DataFrame, vocabulary: Vocabulary, size: int
) -> None:
    rows = examples.filter(pl.col("split") == "train")
    users = encode_users(rows, vocabulary, 8)
    expected = _seen(iter([RetrievalBatch(users, torch.from_numpy(vocabulary.encode_items(rows["item_id"])), 1.0)]))
    shares = [list(batches(task, 2, rank, size)) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1, "ranks with more steps than others would wait for ever"
    assert sorted(seen for share in shares for seen in _seen(iter(share))) == sorted(expected)
    assert len(task.order) == rows.height
    for step in zip(*shares, strict=True):
        examples_of_step = sum(len(batch.target_B) for batch in step)
        assert examples_of_step <= 100
        assert all(batch.scale == size / examples_of_step for batch in step)


def test_the_order_is_a_function_of_seed_and_epoch(task: RetrievalTask, planted: Planted) -> None:
    torch.manual_seed(1)
    first = _seen(batches(task, 0, 0, 1))
    torch.manual_seed(2)
    assert _seen(batches(task, 0, 0, 1)) == first
    assert _seen(batches(task, 1, 0, 1)) != first
    config = RetrievalConfig(two_tower=task.model.config, batch_size=100, seed=6)
    other = RetrievalTask(retrieval_task(planted.dataset, planted.folder, config))
    assert _seen(batches(other, 0, 0, 1)) != first


def test_the_order_does_not_depend_on_the_number_of_ranks(task: RetrievalTask) -> None:
    alone = [_seen(iter([batch])) for batch in batches(task, 0, 0, 1)]
    shares = zip(*(batches(task, 0, rank, 3) for rank in range(3)), strict=True)
    assert [_seen(iter(step)) for step in shares] == alone


@pytest.mark.parametrize("size", [2, 3])
def test_negatives_are_the_same_on_every_rank_and_new_at_every_step(planted: Planted, size: int) -> None:
    task = task_of(planted, loss="sampled_softmax")
    by_rank = [[batch.negatives_N for batch in batches(task, 0, rank, size)] for rank in range(size)]
    for step in zip(*by_rank, strict=True):
        assert all(torch.equal(one_or_fail(step[0]), one_or_fail(negatives)) for negatives in step)
    alone = [one_or_fail(batch.negatives_N) for batch in batches(task, 0, 0, 1)]
    assert all(torch.equal(mine, one_or_fail(other)) for mine, other in zip(alone, by_rank[0], strict=True))
    assert len({tuple(negatives.tolist()) for negatives in alone}) == len(alone)
    assert UNKNOWN not in torch.cat(alone)


def one_or_fail(negatives_N: Tensor | None) -> Tensor:
    assert negatives_N is not None
    return negatives_N


@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_over_ranks_is_the_loss_and_the_gradient_of_one_process(task: RetrievalTask, size: int) -> None:
    def loss_and_gradients(batch: RetrievalBatch) -> tuple[float, dict[str, Tensor]]:
        task.model.zero_grad()
        loss = task.model(batch)
        loss.backward()
        return loss.item(), {name: one_or_fail(w.grad).clone() for name, w in task.model.named_parameters()}

    alone, gradients = loss_and_gradients(next(batches(task, 0, 0, 1)))
    ranks = [loss_and_gradients(next(batches(task, 0, rank, size))) for rank in range(size)]
    assert np.mean([loss for loss, _ in ranks]) == pytest.approx(alone, rel=1e-5)
    for name, gradient in gradients.items():
        mean = torch.stack([rank_gradients[name] for _, rank_gradients in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert math.isfinite(alone)


def test_a_new_model_is_a_function_of_the_seed(planted: Planted) -> None:
    first, second = (task_of(planted).model.state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_saved_model_gives_identical_vectors(
    random_retrieval: RetrievalModel, examples: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    random_retrieval.save(folder)
    loaded = RetrievalModel.load(folder)
    assert loaded.vocabulary == random_retrieval.vocabulary
    assert loaded.config == random_retrieval.config
    np.testing.assert_array_equal(loaded.item_vectors_ID, random_retrieval.item_vectors_ID)
    np.testing.assert_array_equal(loaded.encode_users(examples[:50]), random_retrieval.encode_users(examples[:50]))
    assert (loaded.covisitation != random_retrieval.covisitation).nnz == 0
    kept = random_retrieval.item_vectors_ID + 1
    np.testing.assert_array_equal(RetrievalModel.load(folder, kept).index.vectors_ID, kept)


def test_similar_items_are_the_nearest_by_cosine_and_never_the_item_itself(random_retrieval: RetrievalModel) -> None:
    vectors_ID = random_retrieval.item_vectors_ID[:, :-1].astype(np.float64)
    for code in (1, 17, random_retrieval.vocabulary.num_items):
        codes_K, cosines_K = random_retrieval.similar_items(code, 5)
        norms_I = np.linalg.norm(vectors_ID, axis=1)
        cosines_I = vectors_ID @ vectors_ID[code] / np.maximum(norms_I * norms_I[code], 1e-12)
        cosines_I[[UNKNOWN, code]] = -np.inf
        assert codes_K.tolist() == np.argsort(-cosines_I, kind="stable")[:5].tolist()
        np.testing.assert_allclose(cosines_K, cosines_I[codes_K], rtol=1e-4)


def test_one_with_the_same_attributes_is_as_similar_as_can_be(random_retrieval: RetrievalModel) -> None:
    one, two = (random_retrieval.vocabulary.item_code(item) for item in NEVER_CHOSEN)
    codes_K, cosines_K = random_retrieval.similar_items(one, 1)
    assert codes_K.tolist() == [two]
    assert cosines_K[0] == pytest.approx(1, rel=1e-5)
