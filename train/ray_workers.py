"""The part of training that is Ray Train V2: start workers, run `fit` on them, and say plainly what went wrong."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
import torch
from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution import context
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.errors import TowerlineError
from train.communicator import Communicator, HorovodCommunicator, TorchDistributedCommunicator
from train.elastic import FreeResourcesPolicy, NoteGroup
from train.horovod_backend import HorovodConfig
from train.ray_failures import ReleaseFailedStart, WatchFailures, alive_nodes, readable, resources_per_worker
from train.resumable import fit_in_folder

if TYPE_CHECKING:
    from train.scaling import Scaling, Work

START_ATTEMPTS, START_ATTEMPTS_AS_NODES_CHANGE = 2, 15
"""How often Train waits for its workers to be placed; its own default is for ever."""

ELASTIC_START_TIMEOUT_S = 15
"""Seconds that it waits each time for as many as fitted a moment before; its own default is a minute."""

PATIENCE_FOR_NODES_S = 900
"""Seconds to wait for new nodes."""


def train_on_ray(work: "Work") -> None:
    """Train on Ray's workers, which leave the result in the run's folder.

    Of a lost worker Train starts all anew, and they go on from the newest checkpoint there. Train's own checkpoints
    are not used: it learns of one only when it polls the workers, so the last is lost with a worker that is killed.

    Raises:
        TowerlineError: see `train.trainer.train_distributed`.
    """
    scaling = work.scaling
    nodes_change = scaling.wait_for_nodes or scaling.elastic
    attempts = START_ATTEMPTS_AS_NODES_CHANGE if nodes_change else START_ATTEMPTS
    trainer = _Trainer(
        work,
        _train_worker,
        train_loop_config={"work": ray.cloudpickle.dumps(work)},  # type: ignore[no-untyped-call]
        backend_config=_backend_config(scaling),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            elastic_resize_monitor_interval_s=scaling.resize_s,
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources_per_worker(scaling),
        ),
        run_config=RunConfig(
            name=work.folder.name,
            storage_path=str(work.folder.parent),
            failure_config=FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=attempts - 1),
            callbacks=[WatchFailures()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with _interruptible(), _environment(_train_settings(scaling)):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise readable(error, scaling, work.folder.name) from error


class _Trainer(DataParallelTrainer):
    """Train's trainer, less the helpers that cost a process each (on two cores, as long as a worker's start).

    No datasets are given to it, so none are to be managed. On a single node, the cleaner that would free a dead
    controller's placement group has no one to free it for.
    """

    def __init__(self, work: "Work", train_loop: Callable[[dict[str, Any]], None], **settings: Any) -> None:
        super().__init__(train_loop, **settings)
        self._work = work

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if len(alive_nodes()) == 1 else set())
        callbacks = [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]
        return [ReleaseFailedStart(), NoteGroup(), *callbacks]

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        scaling = self._work.scaling
        if scaling.elastic:
            patience_s = PATIENCE_FOR_NODES_S if scaling.wait_for_nodes else scaling.start_timeout_s
            config = cast("ScalingConfig", self.scaling_config)
            arguments["scaling_policy"] = FreeResourcesPolicy(config, scaling, self._work.folder.name, patience_s)
        return super()._initialize_and_run_controller(**arguments)


def _train_worker(config: dict[str, Any]) -> None:
    """On every worker. The ranks meet before they build their tasks, which may take them unequal time."""
    work: Work = ray.cloudpickle.loads(config["work"])
    torch.set_num_threads(max(1, int(work.scaling.cpus_per_worker)))
    context.logger.setLevel(logging.WARNING)  # Its name is a path, so `LoggingConfig` does not reach it.
    communicator = _communicator(work.scaling)
    try:
        task = work.build_task(work.task_config)
        fit_in_folder(task, communicator, work.fit, folder=work.folder, checkpoint_s=work.scaling.checkpoint_s)
    except Exception as error:
        # A message for the caller, who gets it, or the echo of another worker's death: a traceback would bury both.
        if isinstance(error, TowerlineError) or type(error).__name__ == "HorovodInternalError":
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        raise
    finally:
        communicator.close()


def _communicator(scaling: "Scaling") -> Communicator:
    if scaling.backend == "horovod":
        return HorovodCommunicator(scaling.use_gpu, scaling.horovod)
    import ray.train.torch

    local_rank = ray.train.torch.get_device().index or 0 if scaling.use_gpu else 0
    return TorchDistributedCommunicator(use_gpu=scaling.use_gpu, local_rank=local_rank)


def _backend_config(scaling: "Scaling") -> BackendConfig:
    if scaling.backend == "horovod":
        scaling.horovod.require_possible(nccl=scaling.use_gpu)
        return HorovodConfig(
            timeout_s=scaling.timeout_s,
            stall_timeout_s=scaling.stall_timeout_s,
            interface=scaling.interface,
            options=scaling.horovod,
        )
    import ray.train.torch

    return ray.train.torch.TorchConfig(timeout_s=scaling.stall_timeout_s)  # torch has one timeout for all


def _train_settings(scaling: "Scaling") -> dict[str, str]:
    """What Train asks the environment for."""
    settings = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(scaling.timeout_s)}
    if scaling.elastic:
        settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ELASTIC_START_TIMEOUT_S)
    elif len(alive_nodes()) == 1 and not scaling.wait_for_nodes:
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # It watches for nodes that are about to be taken away.
    return settings


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """With these variables, where they are not set already."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a training as Train wants it, workers first, but be a KeyboardInterrupt afterwards.

    Train installs its own handler, which leaves by `sys.exit(0)`, and never takes it away again.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)
