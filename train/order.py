"""Which examples make up which global batch of an epoch: a function of (seed, epoch, row id), whatever the ranks.

Rows are told apart by id and not by position, so that rows which are added find their place among the others without
reshuffling them. How far an epoch is, is counted in global examples, so that it can be gone on with by any number of
ranks.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK = 2**64 - 1


@dataclass(frozen=True)
class Share:
    """One rank's part of a global batch."""

    rows: Tensor
    """int64: positions of its examples in the task's list; at least one."""
    batch: Tensor
    """int64: positions of all examples of the global batch, the same on every rank."""
    scale: float
    """Turns the sum of this rank's losses into its part of the global batch's mean loss (see `TrainingTask`). 0 where
    there are more ranks than examples: such a rank takes part with an example that does not count."""
    epoch: int
    """From 0."""
    start: int
    """Examples of the epoch that come before this global batch."""
    stop: int
    """Examples of the epoch that are done after it."""
    seed: int
    """The same on every rank: of what the ranks draw together for this batch, such as negatives."""

    def generator(self) -> torch.Generator:
        """Random numbers that are the same on every rank, and others for every batch."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class ExampleOrder:
    """The examples of a task, and how they are put in order."""

    row_ids: Tensor
    """int64 (E,): what tells an example from the others and stays with it when examples are added."""
    batch_size: int
    """Examples of a global batch, over all ranks. The batches are of nearly equal size, at most this."""
    seed: int
    """Another seed is another order."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def digest(self) -> str:
        """The same for the same examples in the same order."""
        content = hashlib.sha256(self.row_ids.numpy().tobytes())
        content.update(f"{self.batch_size} {self.seed}".encode())
        return content.hexdigest()[:16]

    def positions(self, epoch: int) -> Tensor:
        """Positions of all examples (E,), int64, in the order of an epoch."""
        ids = self.row_ids.numpy().astype(np.uint64)
        keys = _scrambled(_scrambled(ids) ^ np.uint64(random_seed(self.seed, epoch)))
        return torch.from_numpy(np.argsort(keys, kind="stable"))

    def batches_from(self, start: int) -> int:
        """Global batches of an epoch from the example `start` on."""
        return math.ceil((len(self) - start) / self.batch_size)

    def shares(self, epoch: int, rank: int, size: int, start: int = 0) -> Iterator[Share]:
        """This rank's share of each global batch of an epoch, from the example `start` on.

        Every example is in one share of one rank. Where an interruption left `start` at the end of a batch, the
        batches that follow are those of the whole epoch.
        """
        order = self.positions(epoch)
        while start < len(order):
            count = math.ceil((len(order) - start) / self.batches_from(start))
            batch = order[start : start + count]
            rows, scale = torch.tensor_split(batch, size)[rank], size / count
            if len(rows) == 0:
                rows, scale = batch[:1], 0.0
            yield Share(rows, batch, scale, epoch, start, start + count, random_seed(self.seed, epoch, start, 1))
            start += count


def random_seed(*parts: int) -> int:
    """A seed of 63 bits from numbers of at most 64 bits; parts that differ a little give seeds that differ a lot."""
    state: int = len(parts)
    for part in parts:
        state = _scrambled(state ^ part)
    return state >> 1


def _scrambled(words: Any) -> Any:
    """A permutation of the 64-bit words, of an int or an array: each bit of the argument changes half of the result's.

    The mixing step of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    words = (words + 0x9E3779B97F4A7C15) & MASK
    words = ((words ^ (words >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    words = ((words ^ (words >> 27)) * 0x94D049BB133111EB) & MASK
    return words ^ (words >> 31)
