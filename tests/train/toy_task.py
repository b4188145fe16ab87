"""A training task small enough to compare every weight and gradient, with the accidents that tests ask for."""

import itertools
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import nn

from train.adamw import AdamW
from train.order import ExampleOrder, Share

EXAMPLES, GLOBAL_BATCH = 48, 16
HURRY = "hurry"
"""The file among the notes that says to."""


@dataclass(frozen=True)
class ToyConfig:
    """What to build, and what should go wrong."""

    notes: Path | None = None
    """Folder where every process notes the steps it began, a line each."""
    learning_rate: float = 0.05
    init_seed: int = 0
    dropout: float = 0.0
    examples: int = EXAMPLES
    batch_size: int = GLOBAL_BATCH
    step_s: float = 0.0
    """How long a step takes at least, until `hurry` is called."""
    die_at: tuple[int, int] | None = None
    """Rank 1 ends its process when it is to begin the step of this epoch and cursor, once."""
    unused_parameter: bool = False


class Batch(NamedTuple):
    """A share of a global batch."""

    codes: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    share: Share


class ToyModel(nn.Module):
    """An embedding and two layers; called with a batch it returns the loss."""

    def __init__(self, task: "ToyTask") -> None:
        super().__init__()
        config = task.config
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
        self._begin = task.begin
        self.register_buffer("flags_6", torch.rand(6, generator=generator) < 0.5)

    def predict(self, codes: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.hidden(torch.cat([self.embedding(codes), features], dim=1)))
        scores: torch.Tensor = self.out(torch.tanh(self.dropout(hidden)))[:, 0]
        return scores

    def forward(self, batch: Batch) -> torch.Tensor:
        self._begin(batch.share)
        return ((self.predict(batch.codes, batch.features) - batch.targets) ** 2).sum() * batch.share.scale


class ToyTask:
    """Examples whose row ids are 100 times their position."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.model = ToyModel(self)
        self.order = ExampleOrder(torch.arange(config.examples) * 100, config.batch_size, seed=0)
        generator = torch.Generator().manual_seed(1)
        self.codes = torch.randint(0, 6, (config.examples,), generator=generator)
        self.features = torch.randn(config.examples, 2, generator=generator)
        self.targets = self.features.sum(dim=1) + self.codes * 0.3

    def optimizer(self) -> torch.optim.Optimizer:
        return AdamW(self.model.parameters(), lr=self.config.learning_rate, weight_decay=0.1)

    def batch(self, share: Share) -> Batch:
        return Batch(self.codes[share.rows], self.features[share.rows], self.targets[share.rows], share)

    def validate(self) -> dict[str, float]:
        """The error, and as further metrics the gradient of the last step, number by number."""
        error = ((self.model.predict(self.codes, self.features) - self.targets) ** 2).mean()
        metrics = {"error": float(error)}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            metrics |= {f"gradient/{name}/{i}": float(value) for i, value in enumerate(parameter.grad.flatten())}
        return metrics

    def begin(self, share: Share) -> None:
        """Called as the step of a share begins."""
        notes = self.config.notes
        if notes is None or not (notes / HURRY).exists():
            time.sleep(self.config.step_s)
        if notes is None:
            return
        rank, size, group = _place()
        rows = self.order.row_ids[share.rows].tolist() if share.scale else []
        note = {"time": time.time(), "epoch": share.epoch, "start": share.start, "stop": share.stop, "rows": rows}
        with (notes / f"rank={rank},size={size},pid={os.getpid()},group={group}").open("a") as file:
            file.write(f"{json.dumps(note)}\n")
        dead = notes / "dead"
        if (share.epoch, share.start) == self.config.die_at and rank == 1 and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def build_toy(config: ToyConfig) -> ToyTask:
    """What `train_distributed` calls on each worker."""
    return ToyTask(config)


def hurry(notes: Path) -> None:
    """From now on no step takes longer than it must: all that was to happen to the training has happened."""
    (notes / HURRY).touch()


Step = tuple[int, int, int, list[int]]
"""Epoch, examples before, examples after, and the row ids in between."""
Steps = dict[tuple[int, int, int], list[int]]
"""The row ids of one rank, by the first three."""


def undisturbed(config: ToyConfig, epochs: int) -> list[Step]:
    """The global steps of a training that nothing interrupts."""
    order = ToyTask(config).order
    shares = (share for epoch in range(epochs) for share in order.shares(epoch, 0, 1))
    return [(share.epoch, share.start, share.stop, sorted(order.row_ids[share.rows].tolist())) for share in shares]


def groups(notes: Path) -> dict[str, list[Steps]]:
    """What the ranks of each group began, in the order in which the groups came."""
    found: dict[str, list[Steps]] = {}
    for path in sorted(notes.glob("rank=*"), key=lambda path: _notes(path)[0]["time"]):
        steps = {(note["epoch"], note["start"], note["stop"]): note["rows"] for note in _notes(path)}
        found.setdefault(path.name.split("group=")[1], []).append(steps)
    return found


def begun(notes: Path) -> list[tuple[int, int]]:
    """Epoch and cursor from which each group went on."""
    return [min(min(steps) for steps in ranks)[:2] for ranks in groups(notes).values()]


def lineage(notes: Path) -> list[Step]:
    """The global steps that made it into the result: those of a group up to where a later one went on."""
    starts, kept = begun(notes), list[Step]()
    for number, ranks in enumerate(groups(notes).values(), start=1):
        end = min(starts[number:], default=(10**9, 0))
        for step in sorted(set().union(*ranks)):
            if step[:2] < end:
                kept.append((*step, sorted(itertools.chain(*(steps[step] for steps in ranks)))))
    return kept


def _notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _place() -> tuple[int, int, str]:
    """Rank, size and a name of the group of ranks that this process belongs to."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size(), os.environ["MASTER_PORT"]
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", f"process-{os.getpid()}")
    return int(os.environ.get("HOROVOD_RANK", "0")), int(os.environ.get("HOROVOD_SIZE", "1")), port
