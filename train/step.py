"""One optimizer step: forward and backward of one or more global batches, and what must hold of their gradients."""

from contextlib import nullcontext
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from cluster.errors import TowerlineError
from train.communicator import Communicator
from train.gradients import sparse_embeddings
from train.lazy_adamw import LazyAdamW
from train.order import ExampleOrder, Share, random_seed

INITIAL_RATE = "initial_lr"
"""Where a parameter group keeps the learning rate that its schedule begins with, as torch's schedulers do."""


class StepConfig(BaseModel):
    """How a step is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of dropout and other random numbers of the model during training."""

    backward_passes_per_step: PositiveInt = 1
    """Global batches whose mean gradient makes one step of the optimizer; at the end of an epoch it may be fewer. The
    ranks exchange gradients once per step."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in the forward and backward pass: with `bfloat16` torch's autocast takes that where it deems it
    safe; weights, gradients and the optimizer stay in float32. Faster where the hardware multiplies it."""

    epochs: PositiveInt = 10
    """Epochs at most."""

    schedule: Literal["constant", "linear"] = "constant"
    """Of the learning rate: `linear` lowers it step by step, to nothing at the end of all `epochs`."""

    def rate_factor(self, done: float) -> float:
        """What the learning rate is multiplied by when so many epochs are done."""
        return 1.0 if self.schedule == "constant" else max(0.0, 1.0 - done / self.epochs)


class Steps:
    """Takes the steps of an epoch, global batch by global batch."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        communicator: Communicator,
        order: ExampleOrder,
        config: StepConfig,
    ) -> None:
        self._model, self._optimizer, self._communicator = model, optimizer, communicator
        self._order, self._config = order, config
        self._passes_left, self._passes, self._first = 0, 1, True
        for group in optimizer.param_groups:
            group.setdefault(INITIAL_RATE, group["lr"])

    @property
    def complete(self) -> bool:
        """Whether no gradient waits for the batches that make up its step."""
        return self._passes_left == 0

    def take(self, share: Share, batch: Any) -> Tensor:
        """The gradient of one batch, and the optimizer's step if it is the last for it; returns this rank's loss.

        Raises:
            TowerlineError: at the first batch, a parameter gets no gradient.
        """
        communicator = self._communicator
        if self.complete:
            self._optimizer.zero_grad()
            left = self._order.batches_from(share.start)
            self._passes = self._passes_left = min(self._config.backward_passes_per_step, left)
        self._passes_left -= 1
        _set_seed(communicator.device, random_seed(self._config.seed, share.epoch, share.start, communicator.rank))
        with nullcontext() if self.complete else communicator.accumulating(self._model):
            with torch.autocast(communicator.device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
                loss: Tensor = self._model(batch)
            (loss / self._passes).backward()  # type: ignore[no-untyped-call]
        if self._first:
            _require_gradients(self._model)
            self._first = False
        if self.complete:
            factor = self._config.rate_factor(share.epoch + share.start / len(self._order))
            for group in self._optimizer.param_groups:
                group["lr"] = group[INITIAL_RATE] * factor
            self._optimizer.step()
        return loss.detach()


def allow_sparse_gradients(model: nn.Module, optimizer: Optimizer) -> None:
    """See to it that the optimizer can step on the gradients of `nn.Embedding(sparse=True)`, if there is one.

    Raises:
        TowerlineError: names the embedding, the optimizer, and those that can.
    """
    sparse = sparse_embeddings(model)
    if not sparse:
        return
    decayed = any(group.get("weight_decay") for group in optimizer.param_groups)
    steps_on_rows = isinstance(optimizer, SGD | Adagrad | SparseAdam) and not decayed
    if not steps_on_rows and not isinstance(optimizer, LazyAdamW):
        raise TowerlineError(
            f"the gradient of {', '.join(sparse)} is sparse, on which {type(optimizer).__name__}"
            f"{' with weight_decay' if decayed else ''} cannot step; take train.lazy_adamw.LazyAdamW, "
            "torch.optim.Adagrad or SGD without weight_decay (SparseAdam if all parameters are sparse), or sparse=False"
        )
    # Its default; left unsaid, torch's optimizers warn of it.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]


def _require_gradients(model: nn.Module) -> None:
    """Horovod would take a missing gradient for zero, DDP for an error and one process for no step: refuse it."""
    missing = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if missing:
        raise TowerlineError(
            f"no gradient reaches {', '.join(missing)}; use every parameter in the loss, "
            "or set requires_grad to False for those that are not trained"
        )


def _set_seed(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which takes a tenth of a millisecond because it looks for devices of every kind."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
