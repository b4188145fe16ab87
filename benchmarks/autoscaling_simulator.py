"""A deployment under a trace of requests, second by second, scaled by a policy and by Ray Serve's own delays.

Time is simulated; Ray's part is Ray's: the default policy, the scaling factors and the delay logic are the functions
of the installed version. Requests wait in one queue, first come, first served; one that finds so many before it that
it could not be answered by its deadline is missed, and goes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve.autoscaling import BATCH_FILL, QUEUE_MS, REQUESTS_PER_S

Decide = Callable[[AutoscalingContext], tuple[float, dict[str, Any]]]
ALL = ReplicaID("all", DeploymentID(name="simulated"))
"""The replicas are alike, so one may speak for all."""
ray_default: Decide = replica_queue_length_autoscaling_policy


@dataclass(frozen=True)
class Replica:
    """What one is able to do."""

    requests_per_s: float = 50.0
    service_s: float = 0.1
    """From the moment that a replica takes a request to its answer."""
    start_s: int = 20
    """From the decision to the first request."""
    deadline_s: float = 0.5
    """After which an answer is of no use."""


@dataclass
class Outcome:
    """What a policy made of a trace."""

    requests: int = 0
    missed: float = 0.0
    """Requests without an answer in time."""
    replica_seconds: int = 0
    """Of replicas that run or start."""
    replicas_T: list[int] = field(default_factory=list)
    missed_T: list[float] = field(default_factory=list)

    @property
    def replica_hours(self) -> float:
        """What is paid for."""
        return self.replica_seconds / 3600


class Simulator:
    """One deployment and its requests."""

    def __init__(self, replica: Replica, config: AutoscalingConfig, decide: Decide) -> None:
        """`config`: bounds, delays and look-back period; `decide`: the policy that Ray would ask."""
        self._replica = replica
        self._config = config
        self._decide = decide
        self._target = config.min_replicas
        self._starting: deque[int] = deque()
        """The seconds in which replicas that start will be ready, earliest first."""
        self._waiting = 0.0
        self._state: dict[str, Any] = {}
        look_back = round(config.look_back_period_s)
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=look_back)

    def run(self, arrivals_T: NDArray[np.int64], measured_from_s: int = 0) -> Outcome:
        """All of a trace; what happens before `measured_from_s` is not counted."""
        outcome = Outcome()
        for second, arrived in enumerate(arrivals_T.tolist()):
            missed = self._serve(second, arrived)
            self._scale(second)
            if second >= measured_from_s:
                outcome.requests += arrived
                outcome.missed += missed
                outcome.replica_seconds += self._target
            outcome.replicas_T.append(self._target)
            outcome.missed_T.append(missed)
        return outcome

    def _serve(self, second: int, arrived: int) -> float:
        """Answer what can be answered in this second; how many requests were missed in it."""
        while self._starting and self._starting[0] <= second:
            self._starting.popleft()
        capacity = (self._target - len(self._starting)) * self._replica.requests_per_s
        asked = self._waiting + arrived
        served = min(asked, capacity)
        in_time = capacity * (self._replica.deadline_s - self._replica.service_s)
        self._waiting = min(asked - served, in_time)
        missed = asked - served - self._waiting
        ongoing = asked - missed - served + served * self._replica.service_s
        queue_ms = 1e3 * self._waiting / capacity if capacity else 0.0
        self._recent.append((ongoing, float(arrived), queue_ms, served / capacity if capacity else 0.0))
        return missed

    def _scale(self, second: int) -> None:
        ongoing, rate, queue_ms, fill = np.mean(self._recent, axis=0).tolist()
        running = self._target - len(self._starting)
        context = AutoscalingContext(
            deployment_id=ALL.deployment_id,
            deployment_name="simulated",
            app_name=None,
            current_num_replicas=running,
            target_num_replicas=self._target,
            running_replicas=[],
            total_num_requests=ongoing,
            total_queued_requests=None,
            aggregated_metrics={REQUESTS_PER_S: {ALL: rate}, QUEUE_MS: {ALL: queue_ms}, BATCH_FILL: {ALL: fill}},
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=float(second),
            config=self._config,
        )
        desired = _apply_scaling_factors(self._decide(context)[0], running, self._config)
        decided, self._state = _apply_delay_logic(desired, self._target, self._config, self._state, _now=float(second))
        target = min(self._config.max_replicas, max(self._config.min_replicas, decided))
        for _ in range(target - self._target):
            self._starting.append(second + self._replica.start_s)
        for _ in range(min(self._target - target, len(self._starting))):
            self._starting.pop()
        self._target = target
