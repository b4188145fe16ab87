"""The two-tower with a sparse item table: loss, gradient and steps are the same, and only some rows are touched."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import SGD, AdamW

from tests.train.planted import Planted, batches
from tests.train.test_two_tower import task_of
from train.communicator import SingleProcess
from train.lazy_adamw import LazyAdamW
from train.loop import FitConfig, TrainingState, fit
from train.models.two_tower import RetrievalBatch, TwoTower, TwoTowerConfig
from train.retrieval import RetrievalTask
from train.vocabulary import UNKNOWN

LOSSES = ("sampled_softmax", "in_batch_softmax")
TABLES = ("item.weight", "popularity.weight")


@pytest.fixture(params=LOSSES)
def pair(request: pytest.FixtureRequest, planted: Planted) -> tuple[RetrievalTask, RetrievalTask]:
    """The same task, dense and sparse."""
    dense = task_of(planted, loss=request.param)
    sparse = task_of(planted, loss=request.param, sparse_item_table=True)
    torch.testing.assert_close(sparse.model.state_dict(), dense.model.state_dict(), rtol=0, atol=0)
    return dense, sparse


def gradients(model: TwoTower, batch: RetrievalBatch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return loss.item(), found


def test_loss_and_gradient_of_a_batch_are_those_of_the_dense_table(pair: tuple[RetrievalTask, RetrievalTask]) -> None:
    dense, sparse = pair
    batch = next(batches(dense, 0, 0, 1))
    (loss, expected), (sparse_loss, found) = gradients(dense.model, batch), gradients(sparse.model, batch)
    assert sparse_loss == pytest.approx(loss, rel=1e-6)
    assert [name for name, gradient in found.items() if gradient.is_sparse] == list(TABLES)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.to_dense(), expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_only_the_items_of_the_batch_are_in_the_gradient(planted: Planted) -> None:
    task = task_of(planted, loss="sampled_softmax", sparse_item_table=True, num_negatives=3)
    whole = next(batches(task, 0, 0, 1))
    assert whole.negatives_N is not None
    few = RetrievalBatch(whole.users[:2], whole.target_B[:2], 0.5, whole.negatives_N)
    met = {*few.users.history_BL.flatten().tolist(), *few.target_B.tolist(), *whole.negatives_N.tolist()} - {UNKNOWN}
    _, found = gradients(task.model, few)
    rows = found["item.weight"].coalesce().indices()[0].tolist()
    assert set(rows) - {UNKNOWN} == met
    assert len(met) < task.model.item.num_embeddings / 2


def test_steps_come_to_the_same_weights(pair: tuple[RetrievalTask, RetrievalTask]) -> None:
    """With SGD, which is defined for both kinds of gradient and makes nothing of one that is zero but for rounding."""
    for task in pair:
        optimizer = SGD(task.model.parameters(), lr=0.5)
        for batch in [*batches(task, 0, 0, 1)][:4]:
            gradients(task.model, batch)
            optimizer.step()
    dense, sparse = (task.model.state_dict() for task in pair)
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_a_training_that_was_interrupted_goes_on_to_the_very_same(planted: Planted) -> None:
    def task() -> RetrievalTask:
        return task_of(planted, loss="sampled_softmax", sparse_item_table=True, dropout=0.2, id_dropout=0.1)

    states: list[TrainingState] = []
    config = FitConfig(epochs=2)
    whole = fit(
        task(),
        SingleProcess(),
        config,
        on_checkpoint=lambda state: states.append(copy.deepcopy(state)),
        checkpoint_s=0,
    )
    again = fit(task(), SingleProcess(), config, resume=states[len(states) // 2])
    torch.testing.assert_close(again.weights, whole.weights, rtol=0, atol=0)
    assert whole.history[1].loss < whole.history[0].loss


def test_the_full_softmax_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"sparse_item_table is true and loss is 'full_softmax'.*set loss to"):
        TwoTowerConfig(sparse_item_table=True)


def test_a_row_that_is_in_every_gradient_is_stepped_on_as_by_adamw_and_others_stay() -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 3)
    rows = torch.tensor([[1, 2], [2, 4], [1, 4]])
    dense, lazy = nn.Embedding.from_pretrained(start.clone(), freeze=False), nn.Embedding(6, 3, sparse=True)
    lazy.weight.data = start.clone()
    line = nn.Linear(3, 1)
    lines = line, copy.deepcopy(line)
    settings = {"lr": 0.1, "weight_decay": 0.2}
    optimizers = (
        AdamW([*dense.parameters(), *lines[0].parameters()], **settings),
        LazyAdamW([*lazy.parameters(), *lines[1].parameters()], **settings),
    )
    for _ in range(5):
        for table, out, optimizer in zip((dense, lazy), lines, optimizers, strict=True):
            optimizer.zero_grad()
            out(table(rows)).square().mean().backward()
            optimizer.step()
    assert lazy.weight.grad is not None
    assert lazy.weight.grad.is_sparse
    torch.testing.assert_close(lazy.weight[[1, 2, 4]], dense.weight[[1, 2, 4]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lines[1].weight, lines[0].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lazy.weight[[0, 3, 5]], start[[0, 3, 5]], rtol=0, atol=0)
