"""The worker group of Ray Train, less the process in which `ray.train.report` waits for all ranks: ours never report.

(What they have to tell is in the run's folder, see `train.progress`.) That process would import Ray Train and Ray Data
while the workers do, on the same cores. A group takes the workers that an earlier one left to its crew (`train.crew`).
"""

import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions
from ray.train.v2._internal.constants import (
    ENABLE_PRINT_PATCH_ENV_VAR,
    ENABLE_WORKER_STRUCTURED_LOGGING_ENV_VAR,
    V2_ENABLED_ENV_VAR,
)
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import (
    WorkerGroupState,
    WorkerGroupStateBuilder,
    _shutdown_workers,
)
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import invoke_context_managers

from train.crew import Crew

READ_BY_WORKERS = (ENABLE_PRINT_PATCH_ENV_VAR, ENABLE_WORKER_STRUCTURED_LOGGING_ENV_VAR, V2_ENABLED_ENV_VAR)
LAST_WORDS_S = 5
"""Seconds for workers to note that a training is over."""
NO_ACTOR: Any = None
"""In the place of an actor that nobody asks."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State(WorkerGroupState):
    """Of a group that has no synchronization actor."""

    kept_by: Crew | None = None
    """Who keeps the workers when the group ends; none: nobody."""

    def shutdown(self) -> None:
        """End the workers and give back their places, unless someone keeps them."""
        if self.kept_by is None:
            self.end()
            return
        over: list[Any] = [worker.actor.shutdown.remote() for worker in self.workers]
        ray.wait(over, num_returns=len(over), timeout=LAST_WORDS_S)
        self.kept_by.stay(self.workers, self.placement_group_handle, self.end)

    def end(self) -> None:
        """End the workers and give back their places."""
        _shutdown_workers(self.workers)
        self.placement_group_handle.shutdown()


class TrainingGroup(WorkerGroup):
    """Called by Train's controller, as the group that it replaces is."""

    crew: Crew | None = None

    def _start_impl(self, worker_group_state_builder: WorkerGroupStateBuilder) -> None:
        self._assert_inactive()  # type: ignore[no-untyped-call]
        group = self._worker_group_context
        self._check_cluster_resources_and_raise_if_insufficient(group.resources_per_worker, group.num_workers)
        around: list[Any] = [callback.on_worker_group_start for callback in self._callbacks]
        with invoke_context_managers(around):
            for callback in self._callbacks:
                callback.before_worker_group_start(group)
            workers, places = self._kept() or self._new(worker_group_state_builder)
            worker_group_state_builder.with_placement_group_handle(places).with_workers(workers)
            self._replica_groups = [
                ReplicaGroup([worker], group.resources_per_worker, list(self._replica_group_callbacks))
                for worker in workers
            ]
            self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
            try:
                self._init_train_context(workers, NO_ACTOR)
                self._worker_group_state = _State(
                    start_time=time.monotonic(), placement_group_handle=places, workers=workers, sync_actor=NO_ACTOR
                )
                for callback in self._callbacks:
                    callback.after_worker_group_start(self)
            except ray.exceptions.RayActorError as error:
                raise WorkerGroupStartupFailedError("A worker ended before it could begin to train.") from error
        ray.get([worker.actor.run_train_fn.remote(group.train_fn_ref) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _kept(self) -> tuple[list[Worker], PlacementGroupHandle] | None:
        """The workers of the training before, if they live."""
        if self.crew is None or not self.crew.workers:
            return None
        workers, places = self.crew.workers, self.crew.places
        try:
            ray.get([worker.actor.get_metadata.remote() for worker in workers])
        except ray.exceptions.RayActorError as error:
            logger.warning("a worker was lost between two trainings (%s); new ones are started", error)
            self.crew.dismiss()
            return None
        self.crew.leave()
        return workers, places

    def _new(self, builder: WorkerGroupStateBuilder) -> tuple[list[Worker], PlacementGroupHandle]:
        """New workers, who know their ranks, in places of their own."""
        group = self._worker_group_context
        places = self._create_placement_group(self._train_run_context.scaling_config, group)
        if not places.wait(self._worker_group_start_timeout_s):
            places.shutdown()
            raise WorkerGroupStartupTimeoutError(num_workers=group.num_workers)
        builder.with_placement_group_handle(places)
        return self._create_workers(group.num_workers, places.placement_group, group.resources_per_worker), places

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """Tell every worker where it is; of the controller, whom it could ask about Train's checkpoints, nothing."""
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=NO_ACTOR,
                **{name: values[rank] for name, values in train_context_args.items()},
            )
            for rank, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:  # noqa: ARG004
        """That of the session where possible: for one of its own, each worker is preceded by a process that sets it up.

        The other variables that Train hands on are for the controller.
        """
        variables = {name: os.environ[name] for name in READ_BY_WORKERS if name in os.environ}
        return {"env_vars": variables} if variables else {}

    def shutdown(self) -> None:
        """The group is over; the workers stay if they have trained to the end and someone keeps them."""
        status, state = self.get_latest_poll_status(), self.get_worker_group_state()
        assert isinstance(state, _State)
        if self.crew is not None and status is not None and status.finished and not status.errors:
            self._worker_group_state = replace(state, kept_by=self.crew)
        super().shutdown()  # type: ignore[no-untyped-call]
