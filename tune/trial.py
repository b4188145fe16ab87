"""One trial: a training like any other, in a folder of its own, whose epochs are the trial's steps.

The training runs in a thread and waits after each epoch until Tune asks for the next one; the workers of a distributed
training do not wait. A trial that was cut off goes on from its last checkpoint and tells of its earlier epochs once
more, for Tune begins it anew.
"""

import math
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
import torch

from cluster.errors import TowerlineError
from train.loop import EpochResult, TrainingTask
from train.progress import Follower
from train.scaling import Scaling
from train.trainer import train_distributed
from tune.algorithms import BEST, FAILED
from tune.models import SEARCHABLE, ModelConfig, TaskConfig
from tune.space import Sample, apply

RUNNING_SUFFIX = ".running"
"""A file of the trial's name with it is there as long as its training holds what it was given."""


@dataclass(frozen=True)
class Trials:
    """What all trials of a search have in common."""

    task: TaskConfig
    """Its config is where the search begins."""
    metric: str
    mode: str
    max_epochs: int
    scaling: Scaling
    storage: Path
    """Folder of the trials' trainings."""


class Trial(ray.tune.Trainable):
    """A step is an epoch. What a person could act on ends the trial, and is told as its last result."""

    _training: "_Training | None" = None

    def setup(self, config: Sample, trials: Trials | None = None) -> None:
        """Called by Tune, which was given `trials` (`ray.tune.with_parameters`)."""
        assert trials is not None
        torch.set_num_threads(max(1, int(trials.scaling.cpus_per_worker)))
        self._trials = trials
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """The next epoch, when it is done.

        The first step begins the training, not `setup`: of two processes that Tune sets up for a trial it may leave
        one unused.
        """
        if self._training is None:
            self._training = _Training(trial_task(self._trials, self._sample), self._trials, str(self.trial_id))
        news = self._training.next_epoch()
        if isinstance(news, TowerlineError):
            return {BEST: math.nan, FAILED: str(news), "done": True}
        if isinstance(news, BaseException):
            raise news
        value = {"loss": news.loss, **news.metrics}[self._trials.metric]
        if not math.isfinite(value):
            reason = f"{self._trials.metric} of epoch {news.epoch} is {value} on the validation events"
            return {BEST: math.nan, FAILED: reason, "done": True}
        self._values.append(value)
        best = max(self._values) if self._trials.mode == "max" else min(self._values)
        return {BEST: best, FAILED: "", "value": value, "loss": news.loss, "epoch": news.epoch}

    def reset_config(self, new_config: Sample) -> bool:
        """Another trial, in this process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """The trial is over; returns when its workers are gone, for the next trial needs their CPUs."""
        if self._training is not None:
            self._training.end()

    def _begin(self, sample: Sample) -> None:
        self._sample, self._values = sample, list[float]()
        self._training = None


def wait_for_trainings(storage: Path, seconds: float) -> None:
    """Return when no trial's training runs, after so many seconds at the latest: one may have died without a word."""
    deadline = time.monotonic() + seconds
    while list(storage.glob(f"*{RUNNING_SUFFIX}")) and time.monotonic() < deadline:
        time.sleep(0.1)


def trial_task(trials: Trials, sample: Sample) -> TaskConfig:
    """What a trial trains: never too patient, for how long it may try is decided by comparison with the others."""
    config: ModelConfig = apply(trials.task.config, sample)
    fit = config.fit.model_copy(update={"epochs": trials.max_epochs, "patience": None})
    return replace(trials.task, config=config.model_copy(update={"fit": fit}))  # type: ignore[arg-type]


class _Training:
    """The training of a trial, in a thread."""

    def __init__(self, task: TaskConfig, trials: Trials, name: str) -> None:
        self._task, self._trials, self._name = task, trials, name
        # Of this attempt: what stops an actor that Tune gave up on must not stop the one that goes on in its place.
        self._stop_file = trials.storage / f"{name}-{uuid.uuid4().hex}.stop"
        self._running_file = trials.storage / f"{name}{RUNNING_SUFFIX}"
        trials.storage.mkdir(parents=True, exist_ok=True)
        self._running_file.touch()
        self._told: queue.SimpleQueue[EpochResult | BaseException] = queue.SimpleQueue()
        self._go_on, self._ending = threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._train, name="trial-training", daemon=True)
        self._thread.start()
        self._asked = False

    def next_epoch(self) -> EpochResult | BaseException:
        """Let the training go on until its next epoch is done, or until it fails."""
        if self._asked:
            self._go_on.release()
        self._asked = True
        return self._told.get()

    def end(self) -> None:
        """Stop the training, if it still runs, and wait until it has."""
        self._ending = True
        self._stop_file.touch()
        self._go_on.release()
        self._thread.join()

    def _train(self) -> None:
        try:
            Follower(self._trials.storage / self._name, on_any=self._tell)
            train_distributed(
                build_stoppable,
                StoppableConfig(self._task, self._stop_file),
                self._task.config.fit,
                self._trials.scaling,
                name=self._name,
                storage=self._trials.storage,
                progress=self._tell,
            )
        except BaseException as error:  # noqa: BLE001  Tune's thread gets it
            self._told.put(error)
        finally:
            self._running_file.unlink(missing_ok=True)

    def _tell(self, result: EpochResult) -> None:
        self._told.put(result)
        if result.epoch + 1 < self._trials.max_epochs:
            self._go_on.acquire()
        if self._ending:
            raise _Stopped


class _Stopped(BaseException):
    """The trial is over before its training is."""


@dataclass(frozen=True)
class StoppableConfig:
    """What a worker needs to build the task of a trial."""

    task: TaskConfig
    stop_file: Path
    """Training ends when it appears."""


class Stoppable:
    """A task that ends its training, on whichever workers, when a file appears. Else it is as the one it wraps."""

    def __init__(self, task: TrainingTask, stop_file: Path) -> None:
        self._task, self._stop_file = task, stop_file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batch(self, share: Any) -> Any:
        """The wrapped task's.

        Raises:
            TowerlineError: the file is there. No worker is asked again after that.
        """
        if self._stop_file.exists():
            raise TowerlineError("the search has ended this trial")
        return self._task.batch(share)

    def validate(self) -> Mapping[str, float]:
        """The wrapped task's."""
        return self._task.validate()


def build_stoppable(config: StoppableConfig) -> TrainingTask:
    """What `train_distributed` calls on each worker."""
    task = SEARCHABLE[type(config.task.config)].build_task(config.task)
    stoppable: Any = Stoppable(task, config.stop_file)
    return stoppable  # type: ignore[no-any-return]
