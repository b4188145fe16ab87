"""What may go wrong with training on Ray, said plainly: too few resources, lost workers, an error in the training."""

import logging
import time
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from cluster.errors import TowerlineError

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState

    from train.scaling import Scaling

logger = logging.getLogger(__name__)


def resources_per_worker(scaling: "Scaling") -> dict[str, float]:
    """What Ray sets aside for one worker."""
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def require_resources(scaling: "Scaling", name: str) -> None:
    """Refuse at once what the cluster could never place, and after `start_timeout_s` what it is too busy for.

    Raises:
        TowerlineError: names what is asked for and what there is.
    """
    if scaling.wait_for_nodes:
        return
    wanted = resources_per_worker(scaling)
    room = sum(places(node["Resources"], wanted) for node in alive_nodes())
    if room < scaling.min_workers:
        raise insufficient(scaling, name)
    deadline = time.monotonic() + scaling.start_timeout_s
    while places(_free(), wanted) < scaling.min_workers:
        if time.monotonic() > deadline:
            raise insufficient(scaling, name)
        time.sleep(0.2)


class WatchFailures(ray.train.UserCallback):
    """In Train's controller: says that workers failed, and ends training at once when trying again is of no use."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """A `TowerlineError` would come again; raised as a `ControllerError` it is not retried."""
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        for cause in causes.values():
            if isinstance(cause, TowerlineError):
                raise ray.train.ControllerError(cause)
        logger.warning("training %r: %s", run_context.run_config.name, _described(causes))


class ReleaseFailedStart(WorkerGroupCallback, ControllerCallback):
    """In Train's controller: frees the CPUs of workers whose start failed half-way, for example in the backend.

    Train itself forgets such a group, and its placement group stays as long as the driver lives. Must be the first
    callback: those after one that raises are not called.
    """

    def __init__(self) -> None:
        self._group: WorkerGroupState | None = None

    def after_worker_group_start(self, worker_group: "WorkerGroup") -> None:
        """Remember the workers until Train shuts them down."""
        self._group = worker_group.get_worker_group_state()

    def after_worker_group_shutdown(self, worker_group_context: "WorkerGroupContext") -> None:
        """Train did its duty."""
        self._group = None

    def before_worker_group_start(self, worker_group_context: "WorkerGroupContext") -> None:
        """Before the next attempt."""
        self._release()

    async def before_controller_shutdown(self) -> None:
        """After the last one."""
        self._release()

    def _release(self) -> None:
        if self._group is not None:
            group, self._group = self._group, None
            group.shutdown()  # type: ignore[no-untyped-call]


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, without Train's and Ray's wrapping."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return error.cause if isinstance(error.cause, BaseException) else error
    return getattr(error, "_base_exc", error)


def readable(error: ray.train.TrainingFailedError, scaling: "Scaling", name: str) -> BaseException:
    """The `TowerlineError` behind `error`, if there is one; else `error`, which is a defect and keeps its traceback."""
    from ray.train.v2._internal.exceptions import (
        InsufficientClusterResourcesError,
        WorkerGroupStartupTimeoutError,
        WorkerHealthCheckFailedError,
        WorkerHealthCheckTimeoutError,
    )

    if isinstance(error, ray.train.ControllerError):
        cause = _cause(error.controller_failure)
        if isinstance(cause, WorkerGroupStartupTimeoutError | InsufficientClusterResourcesError):
            return insufficient(scaling, name)
        return cause if isinstance(cause, TowerlineError) else error
    if isinstance(error, ray.train.WorkerGroupError):
        causes = {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
        for cause in causes.values():
            if isinstance(cause, TowerlineError):
                return cause
        dead = WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError
        lost = [rank for rank, cause in causes.items() if isinstance(cause, dead)]
        if lost:
            return TowerlineError(
                f"training {name!r} lost workers once more than scaling.max_failures={scaling.max_failures} allows, "
                f"the last time {_described({rank: causes[rank] for rank in lost})}; memory that ran out is the usual "
                "cause (see Ray's logs). The checkpoints are kept: train again under the same name to go on"
            )
    return error


def insufficient(scaling: "Scaling", name: str) -> TowerlineError:
    """What is asked for and what there is."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free, wanted = _free(), resources_per_worker(scaling)
    asked = ", ".join(f"{amount:g} {resource}" for resource, amount in wanted.items())
    there = ", ".join(f"{total.get(resource, 0):g} {resource} ({free.get(resource, 0):g} free)" for resource in wanted)
    return TowerlineError(
        f"training {name!r} asks for scaling.num_workers={scaling.num_workers} workers with {asked} each, but the "
        f"cluster has {there}; ask for fewer workers or less for each, wait until others have finished, or add nodes "
        "(a session started here has TOWERLINE_NUM_CPUS logical CPUs)"
    )


def _free() -> dict[str, float]:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def places(resources: dict[str, float], wanted: dict[str, float]) -> int:
    """How many workers find room."""
    return int(min(resources.get(name, 0) / amount for name, amount in wanted.items()))


def _described(causes: dict[int, BaseException]) -> str:
    """One line for all ranks that failed."""
    return ", ".join(f"worker {rank} failed with {_first_line(cause)}" for rank, cause in causes.items())


def _first_line(error: BaseException) -> str:
    underlying = getattr(error, "health_check_failure", error)
    return f"{type(underlying).__name__}: {str(underlying).strip()}".splitlines()[0].split(". ")[0]
