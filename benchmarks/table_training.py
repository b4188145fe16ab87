"""A table of embeddings so large that a batch touches little of it: where sparse gradients pay."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer

from train.order import ExampleOrder, Share


@dataclass(frozen=True)
class TableConfig:
    """How large."""

    sparse: bool
    rows: int = 100_000
    dim: int = 32
    history: int = 16
    batch_size: int = 512
    batches: int = 16


class TableTask:
    """Says from the items of a history, power-law distributed, whether a coin fell on heads."""

    def __init__(self, config: TableConfig) -> None:
        torch.manual_seed(0)
        count = config.batch_size * config.batches
        self.model = _Model(config)
        self.order = ExampleOrder(torch.arange(count), config.batch_size, seed=0)
        self._codes_EL = (config.rows * torch.rand(count, config.history) ** 4).long()
        self._heads_E = torch.rand(count).round()

    def optimizer(self) -> Optimizer:
        """One that takes sparse gradients and dense ones."""
        return Adagrad(self.model.parameters(), lr=0.01)

    def batch(self, share: Share) -> tuple[Tensor, Tensor, float]:
        """Histories and coins."""
        return self._codes_EL[share.rows], self._heads_E[share.rows], share.scale

    def validate(self) -> dict[str, float]:
        """Nothing."""
        return {}


class _Model(nn.Module):
    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.rows, config.dim, sparse=config.sparse)
        self.line = nn.Linear(config.dim, 1)

    def forward(self, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        codes_BL, heads_B, scale = batch
        logits_B = self.line(self.table(codes_BL).mean(dim=1))[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(logits_B, heads_B, reduction="sum") * scale
