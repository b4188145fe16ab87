"""A rank of `benchmarks.exchange`: `python -m benchmarks.exchange_ranks PLAN RESULT`."""

import itertools
import json
import os
import pickle
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.exchange import Exchange, ExchangeCost
from benchmarks.training_task import peak_mb
from benchmarks.wire import bytes_sent
from train.communicator import (
    Communicator,
    HorovodCommunicator,
    SingleProcess,
    TorchDistributedCommunicator,
    end_rank,
)
from train.loop import TrainingTask
from train.order import Share
from train.step import StepConfig, Steps

BATCHES = 8
"""Of different content; made beforehand, so that no clock sees data being read."""


def measured(exchange: Exchange, communicator: Communicator) -> ExchangeCost:
    """Steps with and without the exchange take turns, on the same ranks at the same time."""
    task = exchange.build_task(exchange.task_config)
    model, optimizer = communicator.prepare(task.model, task.optimizer(), exchange.backward_passes_per_step)
    together = _Block(exchange, task, model, optimizer, communicator)
    together.run()
    peak = peak_mb()  # Before there is a second model.
    alone = exchange.build_task(exchange.task_config)
    apart = _Block(exchange, alone, alone.model, alone.optimizer(), SingleProcess())
    rounds: list[tuple[float, ...]] = []
    for _ in range(1 + exchange.rounds):
        before = bytes_sent()
        seconds, cpu_seconds = together.run()
        sent = (bytes_sent() - before) / exchange.steps
        rounds.append((seconds, cpu_seconds, sent, *apart.run()))
        communicator.allreduce_mean(torch.zeros(1))  # Nobody's wait for a slower rank counts as exchange.
    seconds, cpu_seconds, sent, seconds_alone, cpu_seconds_alone = (median(of) for of in zip(*rounds[1:], strict=True))
    return ExchangeCost(seconds, seconds_alone, cpu_seconds, cpu_seconds_alone, sent, together.examples, peak)


class _Block:
    """Takes the same steps again and again."""

    def __init__(
        self, exchange: Exchange, task: TrainingTask, model: nn.Module, optimizer: Optimizer, communicator: Communicator
    ) -> None:
        config = StepConfig(backward_passes_per_step=exchange.backward_passes_per_step)
        self._steps = Steps(model.train(), optimizer, communicator, task.order, config)
        rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
        shares = itertools.islice(task.order.shares(0, rank, size), BATCHES)
        batches: list[tuple[Share, Any]] = [(share, task.batch(share)) for share in shares]
        self._batches, self._count = itertools.cycle(batches), exchange.steps
        self.examples = batches[0][0].stop - batches[0][0].start

    def run(self) -> tuple[float, float]:
        """Seconds for a batch, and those of them that this process computed."""
        began, computed = time.perf_counter(), time.process_time()
        for share, batch in itertools.islice(self._batches, self._count):
            self._steps.take(share, batch)
        return (time.perf_counter() - began) / self._count, (time.process_time() - computed) / self._count


def main(plan: Path, result: Path) -> None:
    """Meet the others, measure, and let rank 0 tell."""
    torch.set_num_threads(1)
    exchange: Exchange = pickle.loads(plan.read_bytes())
    communicator: Communicator
    if exchange.backend == "horovod":
        communicator = HorovodCommunicator(options=exchange.horovod)
    else:
        rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
        communicator = TorchDistributedCommunicator.meet(f"file://{plan}-meet", rank, size)
    cost = measured(exchange, communicator)
    if communicator.rank == 0:
        result.write_text(json.dumps(asdict(cost)))
    communicator.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    end_rank()
