"""Steps of one process; that many give the same is in test_communicator.py."""

from typing import TYPE_CHECKING

import pytest
import torch

from cluster.errors import TowerlineError
from tests.train.table_task import PASSES, TableConfig, by_hand, fitted
from train.communicator import SingleProcess
from train.loop import FitConfig, TrainingState, fit
from train.retrieval import RetrievalConfig, RetrievalTask, retrieval_task

if TYPE_CHECKING:
    from tests.train.planted import Planted


@pytest.mark.parametrize("passes", [1, PASSES, 99])
def test_a_step_takes_the_mean_gradient_of_its_batches(passes: int) -> None:
    torch.testing.assert_close(fitted(SingleProcess(), TableConfig(), passes), by_hand(min(passes, 5)))


def test_it_matters_how_many_batches_make_a_step() -> None:
    one, two = (fitted(SingleProcess(), TableConfig(), passes)["line.weight"] for passes in (1, PASSES))
    assert (one - two).abs().max() > 1e-3


def test_training_goes_on_from_between_two_steps() -> None:
    states: list[TrainingState] = []
    undisturbed = fitted(SingleProcess(), TableConfig(), PASSES, states)
    assert [(state.position.epoch, state.position.cursor) for state in states] == [(0, 16), (0, 32), (1, 16), (1, 32)]
    for state in states:
        gone_on = fitted(SingleProcess(), TableConfig(), PASSES, resume=state)
        torch.testing.assert_close(gone_on, undisturbed, rtol=0, atol=0)


@pytest.mark.parametrize("passes", [1, PASSES])
def test_sparse_gradients_give_what_dense_ones_give(passes: int) -> None:
    sparse, dense = (fitted(SingleProcess(), TableConfig(sparse=flag), passes) for flag in (True, False))
    torch.testing.assert_close(sparse, dense)


def test_an_optimizer_that_cannot_step_on_sparse_gradients_is_named() -> None:
    with pytest.raises(TowerlineError, match=r"table\.weight is sparse, on which AdamW with weight_decay cannot step"):
        fitted(SingleProcess(), TableConfig(sparse=True, optimizer="adamw"), 1)


def test_the_loss_goes_down_alike_in_mixed_precision(planted: "Planted", retrieval_config: RetrievalConfig) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = FitConfig(epochs=4, metric=None, precision=precision)
        task = RetrievalTask(retrieval_task(planted.dataset, planted.folder, retrieval_config))
        losses[precision] = [result.loss for result in fit(task, SingleProcess(), settings).history]
        assert all(weight.dtype == torch.float32 for weight in task.model.parameters())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"][-1] < 0.95 * losses["bfloat16"][0]
