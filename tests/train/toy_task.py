"""A training task small enough to compare every weight and gradient, with the accidents that tests ask for."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

EXAMPLES, GLOBAL_BATCH = 48, 16
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


LONGER_THAN_A_POLL_S = 3.0
"""A report that Train's controller has not polled when the worker dies is lost with it, and the checkpoint too."""


@dataclass(frozen=True)
class ToyConfig:
    """What to build, and what should go wrong."""

    notes: Path | None = None
    """Folder where every rank notes that it was there."""
    learning_rate: float = 0.05
    init_seed: int = 0
    dropout: float = 0.0
    die_at_epoch: int | None = None
    """Rank 1 ends its process at the start of this epoch, once."""
    unused_parameter: bool = False


class ToyModel(nn.Module):
    """An embedding and two layers; called with a batch it returns the loss."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.init_seed)
        self.embedding = nn.Embedding(6, 3)
        self.hidden = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(4, 1, bias=False)
        if config.unused_parameter:
            self.forgotten = nn.Parameter(torch.zeros(2))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5

    def predict(self, codes: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.hidden(torch.cat([self.embedding(codes), features], dim=1)))
        scores: torch.Tensor = self.out(torch.tanh(self.dropout(hidden)))[:, 0]
        return scores

    def forward(self, batch: Batch) -> torch.Tensor:
        codes, features, targets, weight = batch
        return ((self.predict(codes, features) - targets) ** 2).sum() * weight


class ToyTask:
    """Epoch 0 is a single step, later epochs are three."""

    examples_per_epoch = EXAMPLES

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.model = ToyModel(config)
        generator = torch.Generator().manual_seed(1)
        self.codes = torch.randint(0, 6, (EXAMPLES,), generator=generator)
        self.features = torch.randn(EXAMPLES, 2, generator=generator)
        self.targets = self.features.sum(dim=1) + self.codes * 0.3

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.config.learning_rate, weight_decay=0.1)

    def batches(self, epoch: int, rank: int, size: int) -> Iterator[Batch]:
        self._note(epoch, rank, size)
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        for rows in order[: GLOBAL_BATCH if epoch == 0 else EXAMPLES].split(GLOBAL_BATCH):  # type: ignore[no-untyped-call]
            mine = rows[rank::size]
            yield self.codes[mine], self.features[mine], self.targets[mine], size / GLOBAL_BATCH

    def validate(self) -> dict[str, float]:
        """The error, and as further metrics the gradient of the last step, number by number."""
        error = ((self.model.predict(self.codes, self.features) - self.targets) ** 2).mean()
        metrics = {"error": float(error)}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            metrics |= {f"gradient/{name}/{i}": float(value) for i, value in enumerate(parameter.grad.flatten())}
        return metrics

    def _note(self, epoch: int, rank: int, size: int) -> None:
        if self.config.notes is None:
            return
        port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "none")
        (self.config.notes / f"epoch={epoch},rank={rank},size={size},pid={os.getpid()},port={port}").touch()
        dead = self.config.notes / "dead"
        if epoch == self.config.die_at_epoch and rank == 1 and not dead.exists():
            dead.touch()
            time.sleep(LONGER_THAN_A_POLL_S)
            os._exit(3)


def build_toy(config: ToyConfig) -> ToyTask:
    """What `train_distributed` calls on each worker."""
    return ToyTask(config)
