"""The part of training that is Ray Train V2: start workers, run `fit` on them, and say plainly what went wrong."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
from ray.train.backend import BackendConfig
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from train.crew import Crew
from train.elastic import FreeResourcesPolicy, NoteGroup
from train.horovod_backend import HorovodConfig
from train.ray_controller import SETTINGS, logged_apart, run_controller
from train.ray_failures import ReleaseFailedStart, WatchFailures, alive_nodes, readable, resources_per_worker
from train.ray_rank import train_rank

if TYPE_CHECKING:
    from train.scaling import Scaling, Work

START_ATTEMPTS, START_ATTEMPTS_AS_NODES_CHANGE = 2, 15
"""How often Train waits for its workers to be placed; its own default is for ever."""

ELASTIC_START_TIMEOUT_S = 15
"""Seconds that it waits each time for as many as fitted a moment before; its own default is a minute."""

PATIENCE_FOR_NODES_S = 900
"""Seconds to wait for new nodes."""


def train_on_ray(work: "Work", crew: Crew | None = None) -> None:
    """Train on Ray's workers, which leave the result in the run's folder.

    Of a lost worker Train starts all anew, and they go on from the newest checkpoint there. Train's own checkpoints
    are not used: it learns of one only when it polls the workers, so the last is lost with a worker that is killed.

    `crew`: whose workers train if it has some, and who keeps them afterwards.

    Raises:
        TowerlineError: see `train.trainer.train_distributed`.
    """
    scaling = work.scaling
    nodes_change = scaling.wait_for_nodes or scaling.elastic
    attempts = START_ATTEMPTS_AS_NODES_CHANGE if nodes_change else START_ATTEMPTS
    trainer = _Trainer(
        work,
        crew,
        train_loop_config={"work": ray.cloudpickle.dumps(work), "stays": crew is not None},  # type: ignore[no-untyped-call]
        backend_config=_backend_config(scaling, stays=crew is not None),
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
        with logged_apart(work.folder), _environment(_train_settings(scaling)):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise readable(error, scaling, work.folder.name) from error


class _Trainer(DataParallelTrainer):
    """Train's trainer, with its controller here, and less the helpers that cost a process each.

    No datasets are given to it, so none are to be managed. The cleaner would free the placement group of an actor that
    trained and died, such as a trial of a search; that of a driver is freed with it.
    """

    def __init__(self, work: "Work", crew: Crew | None, **settings: Any) -> None:
        super().__init__(train_rank, **settings)
        self._work, self._crew, self._held = work, crew, Counter[str]()

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if len(alive_nodes()) == 1 or ray.get_runtime_context().get_actor_id() is None:
            unused.add("PlacementGroupCleanerCallback")
        callbacks = [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]
        return [ReleaseFailedStart(), NoteGroup(self._held), *callbacks]

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        scaling = self._work.scaling
        if scaling.elastic:
            patience_s = PATIENCE_FOR_NODES_S if scaling.wait_for_nodes else scaling.start_timeout_s
            config = cast("ScalingConfig", self.scaling_config)
            arguments["scaling_policy"] = FreeResourcesPolicy(
                config, scaling, self._work.folder.name, patience_s=patience_s, held=self._held
            )
        return run_controller(self._crew, **arguments)


def _backend_config(scaling: "Scaling", *, stays: bool = False) -> BackendConfig:
    if scaling.backend == "horovod":
        scaling.horovod.require_possible(nccl=scaling.use_gpu)
        return HorovodConfig(
            timeout_s=scaling.timeout_s,
            stall_timeout_s=scaling.stall_timeout_s,
            interface=scaling.interface,
            options=scaling.horovod,
            stays=stays,
        )
    import ray.train.torch

    return ray.train.torch.TorchConfig(timeout_s=scaling.stall_timeout_s)  # torch has one timeout for all


def _train_settings(scaling: "Scaling") -> dict[str, str]:
    """What Train asks the environment for."""
    settings = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(scaling.timeout_s), **SETTINGS}
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
