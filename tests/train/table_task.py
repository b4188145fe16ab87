"""A task with a table of embeddings, whose gradient may be sparse."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from train.communicator import Communicator
from train.lazy_adamw import LazyAdamW
from train.loop import FitConfig, TrainingState, fit
from train.order import ExampleOrder, Share

EXAMPLES, GLOBAL_BATCH, ROWS = 40, 8, 30
PASSES = 2
"""Five batches make an epoch, so its last step has one alone."""


@dataclass(frozen=True)
class TableConfig:
    """What to build."""

    sparse: bool = False
    seed: int = 0
    optimizer: str = "adagrad"


class TableModel(nn.Module):
    """The loss of a table and a line."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.table = nn.Embedding(ROWS, 4, sparse=config.sparse)
        self.line = nn.Linear(4, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor, float]) -> torch.Tensor:
        codes_BL, target_B, scale = batch
        return ((self.line(self.table(codes_BL).mean(dim=1))[:, 0] - target_B) ** 2).sum() * scale


class TableTask:
    """Every example looks up three rows; some rows come often, some never."""

    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.model = TableModel(config)
        self.order = ExampleOrder(torch.arange(EXAMPLES), GLOBAL_BATCH, seed=0)
        generator = torch.Generator().manual_seed(1)
        self.codes = torch.randint(0, ROWS // 2, (EXAMPLES, 3), generator=generator)
        self.targets = torch.randn(EXAMPLES, generator=generator)

    def optimizer(self) -> torch.optim.Optimizer:
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(self.model.parameters())
        if self.config.optimizer == "lazy_adamw":
            return LazyAdamW(self.model.parameters(), lr=0.1, weight_decay=0.1)
        return torch.optim.Adagrad(self.model.parameters(), lr=0.1)

    def batch(self, share: Share) -> tuple[torch.Tensor, torch.Tensor, float]:
        return self.codes[share.rows], self.targets[share.rows], share.scale

    def validate(self) -> dict[str, float]:
        return {}


def fitted(
    communicator: Communicator,
    config: TableConfig,
    passes: int,
    states: list[TrainingState] | None = None,
    resume: TrainingState | None = None,
) -> dict[str, torch.Tensor]:
    """All weights after two epochs on this rank; `states` takes those at every checkpoint."""
    task = TableTask(config)

    def keep(state: TrainingState) -> None:
        if states is not None:
            states.append(copy.deepcopy(state))  # the model goes on changing

    settings = FitConfig(epochs=2, metric=None, backward_passes_per_step=passes)
    fit(task, communicator, settings, resume=resume, on_checkpoint=keep, checkpoint_s=0)
    gradient = task.model.table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse == config.sparse
    return {name: weight.detach().clone() for name, weight in task.model.named_parameters()}


def by_hand(passes: int) -> dict[str, torch.Tensor]:
    """What two epochs give when the gradients of `passes` batches are averaged one by one."""
    task = TableTask(TableConfig())
    optimizer = task.optimizer()
    weights = list(task.model.parameters())
    for epoch in range(2):
        shares = list(task.order.shares(epoch, 0, 1))
        for first in range(0, len(shares), passes):
            group = shares[first : first + passes]
            gradients = [torch.autograd.grad(task.model(task.batch(share)), weights) for share in group]
            for weight, *parts in zip(weights, *gradients, strict=True):
                weight.grad = torch.stack(parts).mean(dim=0)
            optimizer.step()
    return {name: weight.detach() for name, weight in task.model.named_parameters()}
