"""The order of the examples: a function of (seed, epoch) alone, whatever the number of ranks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One rank's part of a global batch."""

    rows: Tensor
    """int64: numbers of its examples."""
    scale: float
    """Turns the sum of this rank's losses into its part of the global batch's mean loss (see `TrainingTask`)."""


def shares(num_examples: int, batch_size: int, *, generator: torch.Generator, rank: int, size: int) -> Iterator[Share]:
    """This rank's share of each global batch of an epoch; each example is in one share of one rank.

    The global batches are of nearly equal size, at most `batch_size`. `generator` must be in the same state on every
    rank (see `epoch_generator`).
    """
    order = torch.randperm(num_examples, generator=generator)
    for rows in torch.tensor_split(order, math.ceil(num_examples / batch_size)):
        yield Share(torch.tensor_split(rows, size)[rank], scale=size / len(rows))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers that all ranks share during an epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
