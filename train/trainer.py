"""Training on a cluster: `fit` on the workers of Ray Train V2, with Horovod or torch DDP between them.

`train_distributed` takes a function that builds the task, and each worker builds its own: no model travels. What comes
back is read from the run's folder, `storage/name`, which every node must see:

    progress.jsonl   one line per epoch, written by rank 0 and followed here
    checkpoint_…     the newest two checkpoints, the best weights included
    finished.json    names the checkpoint of a training that came to its end

A training goes on from its newest checkpoint when it is called again with the same name, also with another number of
workers, and a finished one is simply read.
"""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.files import write_atomically
from train.checkpoint import BrokenCheckpointError, Checkpoints, read_best_weights
from train.communicator import SingleProcess
from train.crew import crew_for
from train.loop import EpochResult, FitConfig, TrainingTask
from train.progress import Follower
from train.resumable import fit_in_folder
from train.scaling import Scaling, Work
from train.tracking import TrackingTarget, start_run

FINISHED_FILE = "finished.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """What a training gave."""

    weights: dict[str, torch.Tensor]
    """State dict of the best epoch's model, on the CPU."""
    best_epoch: int
    """From 0."""
    history: list[EpochResult]
    """Every epoch."""
    checkpoint: Path
    """Folder that holds it all."""
    run_id: str | None
    """The MLflow run of the curve; none if it was not tracked."""


def train_distributed(
    build_task: Callable[[Any], TrainingTask],
    task_config: Any,
    fit: FitConfig,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
) -> TrainedModel:
    """Train `build_task(task_config)` and return the best epoch's weights.

    Both are pickled to the workers, so `build_task` is a function of a module or a class. `progress` is called once
    per new epoch, in the calling process: by the calling thread with backend `none`, else by another one. With the
    `name` of an earlier training in `storage` that training goes on where it was. Ray must have been connected to,
    unless the backend is `none`.

    Raises:
        TowerlineError: the cluster lacks the resources, MLflow does not answer, workers were lost too often, or
            training itself raised one.
        KeyboardInterrupt: Ctrl-C; the workers are gone then, and the checkpoints are kept.
    """
    folder = storage.absolute() / name
    finished = _read_finished(folder, fit)
    if finished is not None:
        return finished
    work, crew = Work(build_task, task_config, fit, scaling, folder), None
    if scaling.backend != "none":
        from train.ray_failures import require_resources

        crew = crew_for(scaling)
        if crew is None or not crew.workers:
            require_resources(scaling, name)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        run = None
        if tracking is not None:
            settings = {f"fit.{key}": value for key, value in fit} | {f"scaling.{key}": value for key, value in scaling}
            run = stack.enter_context(start_run(tracking, settings))
        follower = Follower(folder, on_new=progress, on_any=run.log_epoch if run else None)
        if scaling.backend == "none":
            _train_here(work, follower)
        else:
            from train.ray_workers import train_on_ray

            with follower.in_background():
                train_on_ray(work, crew)
    checkpoint = Checkpoints(folder).newest_folder()
    run_id = run.run_id if run else None
    marker = {"checkpoint": checkpoint.name, "fit": fit.model_dump(), "run_id": run_id}
    write_atomically(folder / FINISHED_FILE, json.dumps(marker, indent=1))
    return TrainedModel(*read_best_weights(checkpoint), checkpoint, run_id)


def delete_run(name: str, storage: Path) -> None:
    """Forget a training, so that its name can be used for another; nothing happens if there is none."""
    shutil.rmtree(storage.absolute() / name, ignore_errors=True)


def _read_finished(folder: Path, fit: FitConfig) -> TrainedModel | None:
    """The finished training in `folder`, if there is one, it was to last as long and its result is whole."""
    path = folder / FINISHED_FILE
    if not path.exists():
        return None
    marker = json.loads(path.read_text())
    if marker["fit"] != fit.model_dump():
        return None
    checkpoint = folder / marker["checkpoint"]
    try:
        return TrainedModel(*read_best_weights(checkpoint), checkpoint, marker["run_id"])
    except BrokenCheckpointError as error:
        logger.warning("%s; the training is gone on with", error.what)
        return None


def _train_here(work: Work, follower: Follower) -> None:
    """Train in this process."""
    communicator = SingleProcess(torch.device("cuda" if work.scaling.use_gpu else "cpu"))
    task = work.build_task(work.task_config)
    fit_in_folder(
        task,
        communicator,
        work.fit,
        folder=work.folder,
        checkpoint_s=work.scaling.checkpoint_s,
        on_epoch=follower.catch_up,
    )
