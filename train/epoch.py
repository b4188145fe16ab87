"""One epoch of the training loop: its steps from any position on, and how far they are.

What is summed over the steps is a part of the position, so that an epoch that was interrupted and gone on with reports
the loss of all its examples.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from train.communicator import Communicator
from train.order import ExampleOrder, Share
from train.prefetch import ahead
from train.step import StepConfig, Steps

BATCHES_AHEAD = 2
"""Batches that are made during a step on a GPU."""


@dataclass(frozen=True)
class Position:
    """How far training is; the same on every rank."""

    epoch: int
    """The epoch in progress, from 0."""
    cursor: int = 0
    """Examples of it that are done, over all ranks."""
    steps: int = 0
    """Global batches that they were."""
    loss_sum: float = 0.0
    """Over those steps; mean over the ranks."""
    seconds: float = 0.0
    """Wall time of those steps; mean over the ranks."""
    waited: float = 0.0
    """Of that, waiting for the next batch."""

    def __str__(self) -> str:
        return f"epoch {self.epoch} after {self.cursor} examples"


@dataclass(frozen=True)
class Checkpointing:
    """When to keep the state within an epoch."""

    save: Callable[[Position], None]
    """Called on every rank after the same step."""
    every_s: float
    """Seconds between two calls; 0: after every step."""


def batches_ahead(device: torch.device) -> int:
    """How many batches to make while a step is taken.

    On the CPU none: there the two compete for the same cores, and making one takes a fiftieth of a two-tower's step.
    """
    return BATCHES_AHEAD if device.type == "cuda" else 0


class EpochRun:
    """The steps of this rank from a position to the end of its epoch."""

    def __init__(
        self,
        order: ExampleOrder,
        batch_of: Callable[[Share], Any],
        communicator: Communicator,
        config: StepConfig,
        start: Position,
    ) -> None:
        self._order, self._batch_of, self._communicator, self._config = order, batch_of, communicator, config
        self._start = start
        self._cursor, self._steps, self._waited = start.cursor, start.steps, 0.0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=communicator.device)
        self._began = time.monotonic()
        self._saved_at, self._saved_step, self._next_look = start.seconds, start.steps, start.steps + 1

    def train(self, model: nn.Module, optimizer: Optimizer, checkpointing: Checkpointing | None) -> Position:
        """Take the steps; returns the position at the end of the epoch.

        The loss is read at checkpoints and at the end only, so that a GPU need not wait.
        """
        model.train()
        device = self._communicator.device
        steps = Steps(model, optimizer, self._communicator, self._order, self._config)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            for share, batch in stack.enter_context(closing(self._batches())):
                self._loss_sum += steps.take(share, batch)
                self._cursor, self._steps = share.stop, self._steps + 1
                if checkpointing is not None and steps.complete and self._cursor < len(self._order):
                    self._save_if_due(checkpointing, optimizer)
        return self._position(optimizer)

    def _batches(self) -> Generator[tuple[Share, Any]]:
        """Shares with their batches on the device; counts the time that is waited for them."""
        communicator = self._communicator
        shares = self._order.shares(self._start.epoch, communicator.rank, communicator.size, self._cursor)
        made = ((share, self._batch_of(share)) for share in shares)
        if (count := batches_ahead(communicator.device)) > 0:
            made = ahead(made, count)
        with closing(made):
            while True:
                asked = time.monotonic()
                share, batch = next(made, (None, None))
                if share is None:
                    return
                batch = _moved(batch, communicator.device)
                self._waited += time.monotonic() - asked
                yield share, batch

    def _save_if_due(self, checkpointing: Checkpointing, optimizer: Optimizer) -> None:
        """Every rank decides the same: by the step when to look at the clocks, and by the mean of the clocks then.

        The first look comes after the first step; each one at most doubles the steps since the last checkpoint.
        """
        if self._steps < self._next_look:
            return
        position = self._position(optimizer)
        elapsed, steps = position.seconds - self._saved_at, self._steps - self._saved_step
        if elapsed >= checkpointing.every_s:
            checkpointing.save(position)
            self._saved_at, self._saved_step = position.seconds, self._steps
        missing_s = self._saved_at + checkpointing.every_s - position.seconds
        self._next_look = self._steps + int(min(max(1, missing_s * steps / max(elapsed, 1e-9)), steps))

    def _position(self, optimizer: Optimizer) -> Position:
        """How far all ranks together are; collective."""
        sums = torch.tensor([0.0, time.monotonic() - self._began, self._waited], dtype=torch.float64)
        sums[0] = self._loss_sum.cpu()
        loss_sum, seconds, waited = self._communicator.allreduce_mean(sums).tolist()
        if not math.isfinite(loss_sum):
            rate = float(optimizer.param_groups[0]["lr"])
            raise TowerlineError(
                f"the training loss of epoch {self._start.epoch} is {loss_sum}; "
                f"try a learning rate below {rate:g}, for example {rate / 10:g}"
            )
        start = self._start
        return Position(
            epoch=start.epoch,
            cursor=self._cursor,
            steps=self._steps,
            loss_sum=start.loss_sum + loss_sum,
            seconds=start.seconds + seconds,
            waited=start.waited + waited,
        )


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
