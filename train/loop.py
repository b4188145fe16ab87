"""The training loop: plain torch, the same for one process and for many.

A `TrainingTask` brings the model and the data, a `Communicator` the other ranks. The order of the examples is a
function of (seed, epoch, row id), the random numbers of a step one of (seed, epoch, position, rank), and a state is all
there is besides, so training that is resumed by as many ranks goes on exactly as if it had never stopped, also within
an epoch.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from train.communicator import Communicator
from train.epoch import Checkpointing, EpochRun, Position
from train.order import ExampleOrder, Share
from train.step import StepConfig, allow_sparse_gradients


class TrainingTask(Protocol):
    """What is trained, on what, and how it is judged."""

    @property
    def model(self) -> nn.Module:
        """Called with a batch it returns the scalar loss of this rank: (sum over this rank's examples) * share.scale,
        of which the mean over the ranks is the mean over the global batch. Every parameter that requires a gradient
        takes part in every loss."""

    @property
    def order(self) -> ExampleOrder:
        """The examples, and which of them make up a global batch."""

    def optimizer(self) -> Optimizer:
        """A new optimizer of `model`'s parameters; called once, when the model is on its device."""

    def batch(self, share: Share) -> Any:
        """What `model` is called with for this share of a global batch.

        A function of `share` and of the task's configuration alone: a resumed run asks again. Called ahead of its
        step. Tensors may be on the CPU: the loop moves them, also inside tuples, lists, dicts and objects that have
        `.to(device)`.
        """

    def validate(self) -> Mapping[str, float]:
        """Metrics of the model as it is now, by name; called after each epoch on rank 0 alone, without gradients."""


class FitConfig(StepConfig):
    """How to train, how long, and which epoch to keep."""

    metric: str | None = "ndcg@10"
    """Which value of `TrainingTask.validate` (or `loss`, the training loss) chooses the epoch whose weights are
    kept; none: no validation, the last epoch's weights."""

    mode: Literal["max", "min"] = "max"
    """Whether more of the metric is better, or less."""

    patience: PositiveInt | None = None
    """Stop after so many epochs without a better one; none: never."""


class EpochResult(BaseModel):
    """One epoch, as shown to people and drawn as a curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """From 0."""

    loss: float
    """Mean of the training loss over the epoch's steps and the ranks."""

    seconds: float
    """Wall time of the training steps, validation excluded; of an epoch that was interrupted, of the steps that
    count."""

    samples_per_s: float
    """Examples of all ranks together per second of `seconds`."""

    data_wait: float = Field(ge=0, le=1)
    """Share of `seconds` in which the ranks, on average, waited for their next batch."""

    metrics: dict[str, float] = {}
    """What validation said; empty without validation."""


@dataclass(frozen=True)
class TrainingState:
    """All that is needed to go on. On every rank the same, but for the best weights."""

    position: Position
    """Where to go on."""
    examples: str
    """Which examples they are, in which order (`ExampleOrder.digest`)."""
    model: dict[str, torch.Tensor]
    """Weights at that position."""
    optimizer: dict[str, Any]
    """The optimizer's state dict there."""
    best_epoch: int | None = None
    """The finished epoch to keep, so far."""
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)
    """Its weights; on the CPU, and on rank 0 alone."""
    history: list[EpochResult] = field(default_factory=list)
    """Every finished epoch."""


@dataclass(frozen=True)
class FitResult:
    """What training gave."""

    weights: dict[str, torch.Tensor]
    """State dict of the best epoch's model, on the CPU; on rank 0 alone."""
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
    *,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_s: float = math.inf,
) -> FitResult:
    """Train until `config.epochs` epochs are done or `config.patience` is out.

    Collective: every rank of `communicator` calls it with an equal task. `on_epoch` is called on every rank after
    each epoch, `on_checkpoint` about every `checkpoint_s` seconds (0: after every step) within an epoch, on every rank
    after the same step; the state they get shares memory with the model, so write or copy it there and then. Training
    goes on from the `resume` of rank 0, whatever the others pass.

    Raises:
        TowerlineError: the loss is not finite, there are no examples, a parameter gets no gradient or a sparse one
            that the optimizer cannot take, the metric is not among those of `validate`, or `resume` belongs to another
            model or other examples.
    """
    if len(task.order) == 0:
        raise TowerlineError("there are no examples to train on; check that the training split is not empty")
    model = task.model.to(communicator.device)
    optimizer = task.optimizer()
    allow_sparse_gradients(model, optimizer)
    if communicator.rank == 0 and resume is not None:
        _load(resume, model, optimizer, task.order)
    parallel_model, optimizer = communicator.prepare(model, optimizer, config.backward_passes_per_step)
    training = _Training(task, communicator, config, optimizer, resume if communicator.rank == 0 else None)

    def save(position: Position) -> None:
        assert on_checkpoint is not None
        on_checkpoint(training.state(position))

    checkpointing = Checkpointing(save, checkpoint_s) if on_checkpoint else None
    position = training.start
    while not training.finished(position):
        run = EpochRun(task.order, task.batch, communicator, config, position)
        done = run.train(parallel_model, optimizer, checkpointing)
        result = training.finish_epoch(done)
        position = Position(done.epoch + 1)
        if on_epoch is not None:
            on_epoch(result, training.state(position))
    assert training.best_epoch is not None
    return FitResult(training.best_model, training.best_epoch, training.history)


class _Training:
    """What is known of a training besides its weights."""

    def __init__(
        self,
        task: TrainingTask,
        communicator: Communicator,
        config: FitConfig,
        optimizer: Optimizer,
        resume: TrainingState | None,
    ) -> None:
        """Take what rank 0 knows."""
        self._task, self._communicator, self._config, self._optimizer = task, communicator, config, optimizer
        self.best_model = resume.best_model if resume else {}
        known = (resume.position, resume.best_epoch, resume.history) if resume else (Position(0), None, [])
        self.start, self.best_epoch, self.history = communicator.broadcast(known)

    def state(self, position: Position) -> TrainingState:
        """All of it."""
        return TrainingState(
            position=position,
            examples=self._task.order.digest,
            model=self._task.model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            best_epoch=self.best_epoch,
            best_model=self.best_model,
            history=list(self.history),
        )

    def finished(self, position: Position) -> bool:
        """Whether the epochs are done, or the patience is out."""
        if self.best_epoch is None:
            return False
        stale = position.epoch - 1 - self.best_epoch
        return position.epoch >= self._config.epochs or (
            self._config.patience is not None and position.cursor == 0 and stale >= self._config.patience
        )

    def finish_epoch(self, done: Position) -> EpochResult:
        """Validate, and keep the weights if there are no better ones."""
        seconds = max(done.seconds, 1e-9)
        result = EpochResult(
            epoch=done.epoch,
            loss=done.loss_sum / done.steps,
            seconds=done.seconds,
            samples_per_s=len(self._task.order) / seconds,
            data_wait=min(done.waited / seconds, 1.0),
        )
        if self._config.metric is not None:
            result = _validated(self._task, self._communicator, result)
            _score(result, self._config.metric)
        self.history.append(result)
        if self.best_epoch is None or _better(result, self.history[self.best_epoch], self._config):
            self.best_epoch = result.epoch
            if self._communicator.rank == 0:
                weights = self._task.model.state_dict().items()
                self.best_model = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights}
        return result


def _load(resume: TrainingState, model: nn.Module, optimizer: Optimizer, order: ExampleOrder) -> None:
    try:
        model.load_state_dict(resume.model)
        optimizer.load_state_dict(copy.deepcopy(resume.optimizer))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TowerlineError(
            f"the checkpoint of {resume.position} is of another model ({reason}); "
            "train under another run name, or delete that run's folder"
        ) from error
    if resume.examples != order.digest:
        raise TowerlineError(
            f"the checkpoint of {resume.position} was made with other examples, or with another batch_size or seed; "
            "train under another run name, or delete that run's folder"
        )


def _validated(task: TrainingTask, communicator: Communicator, result: EpochResult) -> EpochResult:
    """`result` with the metrics that rank 0 measured."""
    metrics: dict[str, float] = {}
    if communicator.rank == 0:
        task.model.eval()
        with torch.no_grad():
            metrics = {name: float(value) for name, value in task.validate().items()}
    return result.model_copy(update={"metrics": communicator.broadcast(metrics)})


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
