import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import train.epoch
from cluster.errors import TowerlineError
from tests.train.toy_task import EXAMPLES, GLOBAL_BATCH, Batch, ToyConfig, ToyTask
from tests.waiting import wait_until
from train.checkpoint import read_checkpoint, write_checkpoint
from train.communicator import SingleProcess
from train.epoch import Position
from train.loop import EpochResult, FitConfig, TrainingState, fit
from train.order import Share

ERROR = FitConfig(epochs=6, metric="error", mode="min")
FALLING = ERROR.model_copy(update={"schedule": "linear"})


def _assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)


def test_training_learns_and_reports_each_epoch() -> None:
    seen: list[EpochResult] = []
    result = fit(ToyTask(ToyConfig()), SingleProcess(), ERROR, lambda epoch, _: seen.append(epoch))
    assert [epoch.epoch for epoch in seen] == list(range(6))
    assert result.history == seen
    assert seen[-1].metrics["error"] < 0.5 * seen[0].metrics["error"]
    assert seen[0].samples_per_s == pytest.approx(EXAMPLES / seen[0].seconds)


def test_best_epoch_is_kept_and_patience_ends_training() -> None:
    task = ToyTask(ToyConfig())
    errors = iter([5.0, 3.0, 4.0, 3.0, 9.0])
    weights: list[torch.Tensor] = []

    def validate() -> dict[str, float]:
        weights.append(task.model.out.weight.detach().clone())
        return {"error": next(errors)}

    task.validate = validate  # type: ignore[method-assign]
    result = fit(task, SingleProcess(), FitConfig(epochs=20, metric="error", mode="min", patience=2))
    assert result.best_epoch == 1
    assert len(result.history) == 4
    torch.testing.assert_close(result.weights["out.weight"], weights[1], rtol=0, atol=0)


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    task = ToyTask(ToyConfig())
    errors = iter([float("nan"), 2.0, float("nan"), 3.0])
    task.validate = lambda: {"error": next(errors)}  # type: ignore[method-assign]
    assert fit(task, SingleProcess(), FitConfig(epochs=4, metric="error", mode="min")).best_epoch == 1


def test_a_linear_schedule_ends_at_nothing() -> None:
    rates: list[float] = []
    task = ToyTask(ToyConfig())
    optimizer = task.optimizer()
    step = optimizer.step
    optimizer.step = lambda: (rates.append(optimizer.param_groups[0]["lr"]), step())  # type: ignore[assignment]
    task.optimizer = lambda: optimizer  # type: ignore[method-assign]
    first = optimizer.param_groups[0]["lr"]
    fit(task, SingleProcess(), FALLING)
    steps = task.order.batches_from(0) * FALLING.epochs
    assert rates == pytest.approx([first * (1 - step / steps) for step in range(steps)])


def test_without_a_metric_the_last_epoch_is_the_result() -> None:
    task = ToyTask(ToyConfig())
    result = fit(task, SingleProcess(), FitConfig(epochs=3, metric=None))
    assert result.best_epoch == 2
    assert all(epoch.metrics == {} for epoch in result.history)
    _assert_equal(result.weights, task.model.state_dict())


@pytest.mark.parametrize("fit_config", [ERROR, FALLING])
def test_training_resumed_within_an_epoch_is_the_same_training(fit_config: FitConfig, tmp_path: Path) -> None:
    config = ToyConfig(dropout=0.5, examples=47)
    positions: list[Position] = []

    def keep(state: TrainingState) -> None:
        write_checkpoint(state, tmp_path / str(len(positions)))
        positions.append(state.position)

    whole = fit(ToyTask(config), SingleProcess(), fit_config, on_checkpoint=keep, checkpoint_s=0)
    assert [(position.epoch, position.cursor) for position in positions] == [
        (epoch, cursor) for epoch in range(6) for cursor in (16, 32)
    ]
    for number in (0, 1, 7, 11):
        torch.manual_seed(number)
        resume = read_checkpoint(tmp_path / str(number))
        resumed = fit(ToyTask(config), SingleProcess(), fit_config, resume=resume)
        _assert_equal(resumed.weights, whole.weights)
        assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]
        assert [epoch.metrics for epoch in resumed.history] == [epoch.metrics for epoch in whole.history]
        assert resumed.best_epoch == whole.best_epoch


def test_checkpoints_within_an_epoch_come_about_every_so_many_seconds() -> None:
    kept: list[float] = []
    config = ToyConfig(examples=100, batch_size=1, step_s=0.02)
    every_s = 0.5
    result = fit(
        ToyTask(config),
        SingleProcess(),
        FitConfig(epochs=1, metric=None),
        on_checkpoint=lambda state: kept.append(state.position.seconds),
        checkpoint_s=every_s,
    )
    assert kept[0] >= every_s
    assert all(after - before >= every_s for before, after in pairwise(kept))
    assert len(kept) >= result.history[0].seconds / (3 * every_s)


def test_without_an_interval_there_are_no_checkpoints_within_an_epoch() -> None:
    kept: list[TrainingState] = []
    fit(ToyTask(ToyConfig()), SingleProcess(), ERROR, on_checkpoint=kept.append)
    assert kept == []


def test_waiting_for_data_is_measured() -> None:
    task = ToyTask(ToyConfig(step_s=0.1))
    batch_of = task.batch

    def slow(share: Share) -> Batch:
        time.sleep(0.2)
        return batch_of(share)

    task.batch = slow  # type: ignore[method-assign]
    result = fit(task, SingleProcess(), FitConfig(epochs=1, metric=None)).history[0]
    waited = result.data_wait * result.seconds
    assert waited >= 3 * 0.2
    assert result.seconds - waited >= 3 * 0.1
    assert result.samples_per_s == pytest.approx(EXAMPLES / result.seconds)


def test_on_a_gpu_the_next_batches_are_made_during_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToyConfig(dropout=0.5)
    plain = fit(ToyTask(config), SingleProcess(), ERROR)
    monkeypatch.setattr(train.epoch, "batches_ahead", lambda _: train.epoch.BATCHES_AHEAD)
    task, made = ToyTask(config), list[int]()
    batch_of = task.batch

    def noted(share: Share) -> Batch:
        made.append(share.start)
        return batch_of(share)

    def step(share: Share) -> None:
        ahead = min(share.stop + GLOBAL_BATCH, EXAMPLES - GLOBAL_BATCH)
        wait_until(lambda: made[-1] >= ahead, 60, f"the batch from example {ahead} on")
        if share.stop == EXAMPLES:
            made[:] = [-1]

    task.batch = noted  # type: ignore[method-assign]
    task.model._begin = step
    result = fit(task, SingleProcess(), ERROR)
    _assert_equal(result.weights, plain.weights)
    assert [epoch.loss for epoch in result.history] == [epoch.loss for epoch in plain.history]
    assert [thread.name for thread in threading.enumerate() if thread.name == "prefetch"] == []


def test_a_checkpoint_of_other_examples_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(ToyConfig()), SingleProcess(), ERROR, lambda _, state: write_checkpoint(state, tmp_path / "c"))
    resume = read_checkpoint(tmp_path / "c")
    for other in (ToyConfig(examples=47), ToyConfig(batch_size=15)):
        with pytest.raises(
            TowerlineError, match=r"checkpoint of epoch 6 after 0 examples was made with other examples"
        ):
            fit(ToyTask(other), SingleProcess(), ERROR, resume=resume)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_resumed_training_is_the_same_training(tmp_path: Path, dropout: float) -> None:
    def keep(epoch: EpochResult, state: TrainingState) -> None:
        if epoch.epoch == 2:
            write_checkpoint(state, tmp_path / "checkpoint")

    config = ToyConfig(dropout=dropout)
    whole = fit(ToyTask(config), SingleProcess(), ERROR, keep)
    torch.manual_seed(12345)
    resumed = fit(ToyTask(config), SingleProcess(), ERROR, resume=read_checkpoint(tmp_path / "checkpoint"))
    _assert_equal(resumed.weights, whole.weights)
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    task = ToyTask(ToyConfig(dropout=0.3))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(task, SingleProcess(), FitConfig(epochs=1, metric=None))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_diverged_loss_names_epoch_and_learning_rate() -> None:
    with pytest.raises(TowerlineError, match=r"loss of epoch 0 is nan.*below 1e\+30, for example 1e\+29"):
        fit(ToyTask(ToyConfig(learning_rate=1e30)), SingleProcess(), ERROR)


def test_unknown_metric_names_those_there_are() -> None:
    task = ToyTask(ToyConfig())
    task.validate = lambda: {"recall@10": 0.1}  # type: ignore[method-assign]
    with pytest.raises(TowerlineError, match=r"fit.metric is 'ndcg@10'.*loss, recall@10"):
        fit(task, SingleProcess(), FitConfig(epochs=1))


def test_parameter_without_gradient_is_named() -> None:
    with pytest.raises(TowerlineError, match="no gradient reaches forgotten"):
        fit(ToyTask(ToyConfig(unused_parameter=True)), SingleProcess(), ERROR)


def test_a_task_without_examples_is_refused() -> None:
    with pytest.raises(TowerlineError, match="no examples to train on; check that the training split"):
        fit(ToyTask(ToyConfig(examples=0)), SingleProcess(), ERROR)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(ToyConfig()), SingleProcess(), ERROR, lambda _, state: write_checkpoint(state, tmp_path / "c"))
    other = ToyTask(ToyConfig(unused_parameter=True))
    with pytest.raises(TowerlineError, match=r"checkpoint of epoch 6 after 0 examples is of another model .*forgotten"):
        fit(other, SingleProcess(), ERROR, resume=read_checkpoint(tmp_path / "c"))
