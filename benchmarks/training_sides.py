"""The sides of `benchmarks.training`: our loop on Ray with Horovod or torch DDP, and a plain loop, taking turns."""

import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from benchmarks.processes import run_side
from benchmarks.training_task import CPU_S, PEAK_MB, BenchTask, BenchTaskConfig
from cluster.errors import TowerlineError
from train.loop import FitConfig
from train.models.two_tower import TwoTowerConfig
from train.scaling import Scaling
from train.trainer import TrainedModel, delete_run, train_distributed

WARM_UP = 1
"""Epochs before those that count."""
MOST_DIFFERENCE = 1e-3
"""Between the losses of one process and of four workers, dropout off, relative; floating-point error is far less."""
Backend = Literal["horovod", "torch", "none"]


@dataclass(frozen=True)
class Side:
    """A backend with so many workers; `none` is the plain loop."""

    name: str
    backend: Backend
    workers: int

    @property
    def place(self) -> str:
        """In the names of figures."""
        return f"{self.name}/w{self.workers}"


@dataclass(frozen=True)
class Trained:
    """What a training took; medians over its epochs."""

    samples_per_s: float
    cpu_s: float
    """Of one epoch, on rank 0."""
    start_s: float
    peak_mb: float
    data_wait: float


SIDES = [
    Side("plain", "none", 1),
    Side("horovod", "horovod", 1),
    Side("ddp", "torch", 1),
    Side("horovod", "horovod", 2),
    Side("ddp", "torch", 2),
]
PAIRS = [("horovod/w1", "plain/w1"), ("horovod/w1", "ddp/w1"), ("horovod/w2", "ddp/w2")]


def side_figures(task: BenchTaskConfig, folder: Path, epochs: int, repeats: int) -> dict[str, float]:
    """Every side, so many times in turn."""
    taken: dict[str, list[Trained]] = {side.place: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            trained = train_side(side, task, folder, WARM_UP + epochs)
            taken[side.place].append(trained)
            print(f"{side.place}: {trained.samples_per_s:,.0f} samples/s, start {trained.start_s:.1f} s", flush=True)
    examples = len(BenchTask(task).order)
    return summary(taken, batches=-(-examples // task.retrieval.config.batch_size))


def summary(taken: Mapping[str, Sequence[Trained]], batches: int) -> dict[str, float]:
    """Medians of each side, and of the ratios within the repeats."""
    figures: dict[str, float] = {}
    for place, runs in taken.items():
        figures[f"samples_per_s/{place}"] = median(run.samples_per_s for run in runs)
        figures[f"cpu_ms_per_batch/{place}"] = median(run.cpu_s for run in runs) / batches * 1e3
        figures[f"peak_mb/{place}"] = max(run.peak_mb for run in runs)
        if not place.startswith("plain"):
            figures[f"start_s/{place}"] = median(run.start_s for run in runs)
            figures[f"data_wait/{place}"] = median(run.data_wait for run in runs)
    for above, below in PAIRS:
        pairs = list(zip(taken[above], taken[below], strict=True))
        name = f"{above}_to_{below.split('/')[0]}"
        figures[f"ratio/{name}"] = median(a.samples_per_s / b.samples_per_s for a, b in pairs)
        figures[f"cpu_ratio/{name}"] = median(a.cpu_s / b.cpu_s for a, b in pairs)
    for name in ("horovod", "ddp"):
        pairs = list(zip(taken[f"{name}/w2"], taken[f"{name}/w1"], strict=True))
        figures[f"efficiency/{name}/w2"] = median(two.samples_per_s / one.samples_per_s / 2 for two, one in pairs)
    return figures


def train_side(side: Side, task: BenchTaskConfig, folder: Path, epochs: int) -> Trained:
    """One training, without the epochs that warm up.

    Raises:
        TowerlineError: it failed, or the plain loop took too much memory.
    """
    if side.backend == "none":
        return _train_plainly(task, folder, epochs)
    began = time.monotonic()
    trained = _train(side, task, folder, epochs)
    wall_s = time.monotonic() - began
    counted = trained.history[WARM_UP:]
    return Trained(
        samples_per_s=median(epoch.samples_per_s for epoch in counted),
        cpu_s=median(after.metrics[CPU_S] - before.metrics[CPU_S] for before, after in pairwise(trained.history)),
        start_s=wall_s - sum(epoch.seconds for epoch in trained.history),
        peak_mb=counted[-1].metrics[PEAK_MB],
        data_wait=median(epoch.data_wait for epoch in counted),
    )


def _train(side: Side, task: BenchTaskConfig, folder: Path, epochs: int) -> TrainedModel:
    fit = FitConfig(epochs=epochs, metric=CPU_S)
    scaling = Scaling(backend=side.backend, num_workers=side.workers)
    name = side.place.replace("/", "-")
    delete_run(name, folder)
    return train_distributed(BenchTask, task, fit, scaling, name=name, storage=folder)


def _train_plainly(task: BenchTaskConfig, folder: Path, epochs: int) -> Trained:
    file = folder / "task.pickle"
    file.write_bytes(pickle.dumps(task))
    ended = run_side(["-m", "benchmarks.plain_training", file, epochs])
    if ended is None:
        raise TowerlineError("the plain loop needs more than 70 % of this machine's memory; take fewer --examples")
    answer = ended.answer
    examples = answer["examples"]
    return Trained(
        samples_per_s=median(examples / seconds for seconds in answer["seconds"][WARM_UP:]),
        cpu_s=median(answer["cpu_seconds"][WARM_UP:]),
        start_s=0.0,
        peak_mb=answer["peak_mb"],
        data_wait=0.0,
    )


def loss_difference(task: BenchTaskConfig, folder: Path) -> float:
    """How much the loss of four workers differs from that of one process after two epochs, relative.

    Raises:
        TowerlineError: by more than floating-point error.
    """
    config = task.retrieval.config.model_copy(update={"two_tower": TwoTowerConfig(dropout=0, id_dropout=0)})
    steady = replace(task, retrieval=replace(task.retrieval, config=config))
    sides = Side("alone", "none", 1), Side("horovod", "horovod", 4)
    alone, four = (_train(side, steady, folder, epochs=2).history[-1].loss for side in sides)
    if abs(four / alone - 1) > MOST_DIFFERENCE:
        raise TowerlineError(f"four workers reach a loss of {four:.6f}, one process {alone:.6f}; they must be the same")
    return abs(four / alone - 1)
