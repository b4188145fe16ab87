"""Training in a folder: what is done is kept there, and a training that was cut off goes on from it.

The same for one process and for the workers of a cluster, so that one may go on where the other stopped.
"""

from collections.abc import Callable
from pathlib import Path

from train.checkpoint import Checkpoints
from train.communicator import Communicator
from train.loop import EpochResult, FitConfig, TrainingState, TrainingTask, fit
from train.progress import append_progress


def fit_in_folder(
    task: TrainingTask,
    communicator: Communicator,
    config: FitConfig,
    *,
    folder: Path,
    checkpoint_s: float,
    on_epoch: Callable[[], None] | None = None,
) -> None:
    """`fit` from the newest checkpoint in `folder`, with one about every `checkpoint_s` seconds and after each epoch.

    Collective. Rank 0 reads and writes the folder; its result is the newest checkpoint.

    Raises:
        TowerlineError: see `fit`; or there are checkpoints, but none can be read.
    """
    first = communicator.rank == 0
    checkpoints = Checkpoints(folder)
    resume = checkpoints.newest() if first else None
    # Who wrote that checkpoint may have died before it told of the epoch.
    for result in resume.history if resume else []:
        append_progress(folder, result)

    def keep(state: TrainingState) -> None:
        if first:
            checkpoints.write(state)

    def finish_epoch(result: EpochResult, state: TrainingState) -> None:
        keep(state)
        if first:
            append_progress(folder, result)
        if on_epoch is not None:
            on_epoch()

    fit(task, communicator, config, finish_epoch, resume, on_checkpoint=keep, checkpoint_s=checkpoint_s)
