"""The training loop: plain torch, the same for one process and for many.

A `TrainingTask` brings the model and the data, a `Communicator` the other ranks. The order of the examples and the
random numbers of an epoch are functions of (seed, epoch, rank), so that training resumed from a checkpoint goes on
exactly as if it had never stopped.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from train.communicator import Communicator


class TrainingTask(Protocol):
    """What is trained, on what, and how it is judged."""

    @property
    def model(self) -> nn.Module:
        """Called with a batch it returns the scalar loss of this rank: (sum over this rank's examples) * size /
        (examples in the global batch). Every parameter that requires a gradient takes part in every loss."""

    @property
    def examples_per_epoch(self) -> int:
        """Examples that all ranks together see in an epoch; what samples per second are counted from."""

    def optimizer(self) -> Optimizer:
        """A new optimizer of `model`'s parameters; called once, when the model is on its device."""

    def batches(self, epoch: int, rank: int, size: int) -> Iterator[Any]:
        """This rank's batches of an epoch (from 0): the same number on every rank, at least one.

        A function of its arguments and of the task's seed alone: a resumed run asks again. Rank r of n gets its
        share of each global batch. Tensors may be on the CPU: the loop moves them, also inside tuples, lists,
        dicts and objects that have `.to(device)`.
        """

    def validate(self) -> Mapping[str, float]:
        """Metrics of the model as it is now, by name; called after each epoch on rank 0 alone, without gradients."""


class FitConfig(BaseModel):
    """How long to train and which epoch to keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 10
    """Epochs at most."""

    metric: str | None = "ndcg@10"
    """Which value of `TrainingTask.validate` (or `loss`, the training loss) chooses the epoch whose weights are
    kept; none: no validation, the last epoch's weights."""

    mode: Literal["max", "min"] = "max"
    """Whether more of the metric is better, or less."""

    patience: PositiveInt | None = None
    """Stop after so many epochs without a better one; none: never."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of dropout and other random numbers of the model during training."""


class EpochResult(BaseModel):
    """One epoch, as shown to people and drawn as a curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """From 0."""

    loss: float
    """Mean of the training loss over the epoch's steps and the ranks."""

    seconds: float
    """Wall time of the training steps, validation excluded."""

    samples_per_s: float
    """Examples of all ranks together per second of `seconds`."""

    metrics: dict[str, float] = {}
    """What validation said; empty without validation."""


@dataclass(frozen=True)
class TrainingState:
    """All that is needed to go on after an epoch. On every rank the same."""

    epoch: int
    """The last finished epoch, from 0."""
    model: dict[str, torch.Tensor]
    """Weights after that epoch."""
    optimizer: dict[str, Any]
    """The optimizer's state dict after that epoch."""
    best_epoch: int
    """The epoch to keep, so far."""
    best_model: dict[str, torch.Tensor]
    """Its weights; on the CPU."""
    history: list[EpochResult] = field(default_factory=list)
    """Every epoch so far."""


@dataclass(frozen=True)
class FitResult:
    """What training gave."""

    weights: dict[str, torch.Tensor]
    """State dict of the best epoch's model, on the CPU."""
    best_epoch: int
    """Which one that was, from 0."""
    history: list[EpochResult]
    """Every epoch."""


def fit(
    task: TrainingTask,
    communicator: Communicator,
    config: FitConfig,
    on_epoch: Callable[[EpochResult, TrainingState], None] | None = None,
    resume: TrainingState | None = None,
) -> FitResult:
    """Train until `config.epochs` epochs are done or `config.patience` is out.

    Collective: every rank of `communicator` calls it with an equal task. `on_epoch` is called on every rank after
    each epoch; the state it gets shares memory with the model, so write or copy it there and then. With `resume`
    the epochs after `resume.epoch` are trained.

    Raises:
        TowerlineError: the loss is not finite, an epoch has no batches, a parameter gets no gradient, the metric is
            not among those of `validate`, or `resume` belongs to another model.
    """
    model = task.model.to(communicator.device)
    optimizer = task.optimizer()
    if resume is not None:
        _load(resume, model, optimizer)
    parallel_model, optimizer = communicator.prepare(model, optimizer)
    state = resume
    while not _finished(state, config):
        epoch = 0 if state is None else state.epoch + 1
        result = _train_epoch(task, parallel_model, optimizer, communicator, seed=config.seed, epoch=epoch)
        if config.metric is not None:
            result = _validated(task, communicator, result)
            _score(result, config.metric)
        state = _advance(state, result, model, optimizer, config)
        if on_epoch is not None:
            on_epoch(result, state)
    assert state is not None
    return FitResult(state.best_model, state.best_epoch, state.history)


def _load(resume: TrainingState, model: nn.Module, optimizer: Optimizer) -> None:
    try:
        model.load_state_dict(resume.model)
        optimizer.load_state_dict(copy.deepcopy(resume.optimizer))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TowerlineError(
            f"the checkpoint of epoch {resume.epoch} is of another model ({reason}); "
            "train under another run name, or delete that run's folder"
        ) from error


def _train_epoch(
    task: TrainingTask,
    model: nn.Module,
    optimizer: Optimizer,
    communicator: Communicator,
    *,
    seed: int,
    epoch: int,
) -> EpochResult:
    """One pass over this rank's batches; the loss is read once, at the end, so that a GPU need not wait."""
    model.train()
    started = time.monotonic()
    loss_sum = torch.zeros((), dtype=torch.float64, device=communicator.device)
    steps = 0
    with torch.random.fork_rng(_cuda_devices(communicator.device)):
        torch.manual_seed(_epoch_seed(seed, epoch, communicator.rank))
        for batch in task.batches(epoch, communicator.rank, communicator.size):
            optimizer.zero_grad()
            loss = model(_moved(batch, communicator.device))
            loss.backward()
            if steps == 0:
                _require_gradients(model)
            optimizer.step()
            loss_sum += loss.detach()
            steps += 1
    total = torch.stack([loss_sum.cpu(), torch.tensor(float(steps), dtype=torch.float64)])
    mean_sum, mean_steps = communicator.allreduce_mean(total).tolist()
    if mean_steps == 0:
        raise TowerlineError(f"epoch {epoch} has no batches; check that the training split is not empty")
    loss_value = mean_sum / mean_steps
    if not math.isfinite(loss_value):
        rate = float(optimizer.param_groups[0]["lr"])
        raise TowerlineError(
            f"the training loss of epoch {epoch} is {loss_value}; "
            f"try a learning rate below {rate:g}, for example {rate / 10:g}"
        )
    seconds = time.monotonic() - started
    return EpochResult(
        epoch=epoch, loss=loss_value, seconds=seconds, samples_per_s=task.examples_per_epoch / max(seconds, 1e-9)
    )


def _validated(task: TrainingTask, communicator: Communicator, result: EpochResult) -> EpochResult:
    """`result` with the metrics that rank 0 measured."""
    metrics: dict[str, float] = {}
    if communicator.rank == 0:
        task.model.eval()
        with torch.no_grad():
            metrics = {name: float(value) for name, value in task.validate().items()}
    return result.model_copy(update={"metrics": communicator.broadcast(metrics)})


def _advance(
    state: TrainingState | None, result: EpochResult, model: nn.Module, optimizer: Optimizer, config: FitConfig
) -> TrainingState:
    history = [*(state.history if state else []), result]
    following = TrainingState(
        epoch=result.epoch,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        best_epoch=result.epoch,
        best_model={},
        history=history,
    )
    if state is not None and not _better(result, history[state.best_epoch], config):
        return replace(following, best_epoch=state.best_epoch, best_model=state.best_model)
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in following.model.items()}
    return replace(following, best_model=weights)


def _better(result: EpochResult, best: EpochResult, config: FitConfig) -> bool:
    """Whether `result` is the epoch to keep; a value that is not a number never is."""
    if config.metric is None:
        return True
    value, before = _score(result, config.metric), _score(best, config.metric)
    if math.isnan(before):
        return True
    return value > before if config.mode == "max" else value < before


def _score(result: EpochResult, metric: str) -> float:
    values = {"loss": result.loss, **result.metrics}
    if metric not in values:
        raise TowerlineError(
            f"fit.metric is {metric!r}, which validation does not measure; set it to one of {', '.join(sorted(values))}"
        )
    return values[metric]


def _finished(state: TrainingState | None, config: FitConfig) -> bool:
    if state is None:
        return False
    stale = state.epoch - state.best_epoch
    return state.epoch + 1 >= config.epochs or (config.patience is not None and stale >= config.patience)


def _require_gradients(model: nn.Module) -> None:
    """Horovod would take a missing gradient for zero, DDP for an error and one process for no step: refuse it."""
    missing = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if missing:
        raise TowerlineError(
            f"no gradient reaches {', '.join(missing)}; use every parameter in the loss, "
            "or set requires_grad to False for those that are not trained"
        )


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return seed + 1_000_003 * epoch + 7_919 * rank


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _moved(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [_moved(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
