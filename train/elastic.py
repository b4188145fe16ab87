"""How many workers an elastic training starts with, and when it goes on with more or fewer.

Ray Train's own policy counts what nodes have, as a coordinator last saw it up to 20 seconds ago: it waits in vain for
nodes that have just gone, and for CPUs that something else holds, such as Serve. This one counts what is free.
"""

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from ray._private.state import available_resources_per_node
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision
from ray.train.v2.api.config import ScalingConfig

from train.ray_failures import alive_nodes, insufficient, places

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import (
        WorkerGroup,
        WorkerGroupContext,
        WorkerGroupPollStatus,
        WorkerGroupState,
    )

    from train.scaling import Scaling

POLL_S = 0.5
"""Seconds between two looks when there is no room."""

logger = logging.getLogger(__name__)


class NoteGroup(WorkerGroupCallback):
    """Keeps count of the present group's workers by node, for `FreeResourcesPolicy`."""

    def __init__(self, held: Counter[str]) -> None:
        self._held = held

    def after_worker_group_start(self, worker_group: "WorkerGroup") -> None:
        """They hold their resources from now on."""
        self._held.update(worker.metadata.node_id for worker in worker_group.get_workers())

    def after_worker_group_shutdown(self, worker_group_context: "WorkerGroupContext") -> None:
        """They hold them no more."""
        self._held.clear()

    def before_worker_group_start(self, worker_group_context: "WorkerGroupContext") -> None:
        """Nor do those of a group whose start failed (see `ReleaseFailedStart`)."""
        self._held.clear()


class FreeResourcesPolicy(ElasticScalingPolicy):
    """As many workers as fit beside all else, between the fewest and the most.

    To the autoscaler, if there is one, the request for the most is kept up, as Train's own policy does.
    """

    def __init__(
        self, config: ScalingConfig, scaling: "Scaling", name: str, *, patience_s: float, held: Counter[str]
    ) -> None:
        """`patience_s`: how long to wait when there is room for less than the fewest; `held`: as `NoteGroup` counts."""
        super().__init__(config)
        self._scaling, self._name, self._patience_s, self._held = scaling, name, patience_s, held
        self._waiting_since: float | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start, or start anew, with as many as fit.

        Raises:
            TowerlineError: fewer than the fewest fit, for longer than the patience.
        """
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        count = self._room()
        if count < self.scaling_config.min_workers:
            self._wait()
            return NoopDecision()
        self._waiting_since = None
        return self._get_resize_decision(count)

    def make_decision_for_running_worker_group(
        self, worker_group_state: "WorkerGroupState", worker_group_status: "WorkerGroupPollStatus"
    ) -> ScalingDecision:
        """Start anew with more when more fit; that fewer do is seen by the loss of a worker."""
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        now = time.monotonic()
        looked_at = max(worker_group_state.start_time, self._latest_monitor_time)
        if now - looked_at < self.scaling_config.elastic_resize_monitor_interval_s:
            return NoopDecision()
        self._latest_monitor_time = now
        count = self._room()
        if count <= worker_group_state.num_workers:
            return NoopDecision()
        logger.warning(
            "training %r goes on with %d workers instead of %d", self._name, count, worker_group_state.num_workers
        )
        return self._get_resize_decision(count)

    def _room(self) -> int:
        """How many workers fit on the nodes that live.

        Those of the present group are counted among them: if it has failed, Train ends it just before the next starts.
        """
        wanted = self.scaling_config._resources_per_worker_not_none
        free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        alive = {str(node["NodeID"]) for node in alive_nodes()}
        return min(
            sum(places(free.get(node, {}), wanted) + self._held[node] for node in alive),
            self.scaling_config.max_workers,
        )

    def _wait(self) -> None:
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
            logger.warning("training %r waits for room for %d workers", self._name, self.scaling_config.min_workers)
        if now - self._waiting_since > self._patience_s:
            raise insufficient(self._scaling, self._name)
        time.sleep(POLL_S)
