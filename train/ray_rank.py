"""What runs on every worker of Ray Train. It imports no more than that, for each worker pays for it at its start."""

import logging
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.train.v2._internal.execution import context

from cluster.errors import TowerlineError
from train.communicator import Communicator, HorovodCommunicator, TorchDistributedCommunicator
from train.resumable import fit_in_folder

if TYPE_CHECKING:
    from train.scaling import Scaling, Work


def train_rank(config: dict[str, Any]) -> None:
    """Train as one of the ranks, which meet before they build their tasks: that may take them unequal time.

    Where the worker stays for another training it stays with the other ranks, too.
    """
    work: Work = ray.cloudpickle.loads(config["work"])
    torch.set_num_threads(max(1, int(work.scaling.cpus_per_worker)))
    context.logger.setLevel(logging.WARNING)  # Its name is a path, so `LoggingConfig` does not reach it.
    communicator, finished = _communicator(work.scaling), False
    try:
        task = work.build_task(work.task_config)
        fit_in_folder(task, communicator, work.fit, folder=work.folder, checkpoint_s=work.scaling.checkpoint_s)
        finished = True
    except Exception as error:
        # A message for the caller, who gets it, or the echo of another worker's death: a traceback would bury both.
        if isinstance(error, TowerlineError) or type(error).__name__ == "HorovodInternalError":
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        raise
    finally:
        if not (finished and config["stays"]):
            communicator.close()


def _communicator(scaling: "Scaling") -> Communicator:
    if scaling.backend == "horovod":
        return HorovodCommunicator(scaling.use_gpu, scaling.horovod)
    import ray.train.torch

    local_rank = ray.train.torch.get_device().index or 0 if scaling.use_gpu else 0
    return TorchDistributedCommunicator(use_gpu=scaling.use_gpu, local_rank=local_rank)
