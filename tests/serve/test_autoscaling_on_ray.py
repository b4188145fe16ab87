"""Ray Serve's controller asks our policies."""

import time

import pytest
import ray.serve

from serve.app import scaling
from serve.autoscaling import ScheduleConfig, Window
from serve.config import Replicas

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


class Nothing:
    """A deployment that nobody asks."""


def test_a_window_brings_replicas_that_no_load_asks_for() -> None:
    always = [Window(start=start, end=end, replicas=2) for start, end in (("00:00", "12:00"), ("12:00", "00:00"))]
    replicas = Replicas(max=3, upscale_delay_s=0, schedule=ScheduleConfig(windows=tuple(always)))
    deployment = ray.serve.deployment(
        name="Nothing",
        autoscaling_config=scaling(replicas),
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=1,
    )(Nothing)
    ray.serve.start(proxy_location="Disabled")
    try:
        ray.serve.run(deployment.bind(), name="scheduled", route_prefix=None)
        deadline = time.monotonic() + 120
        while _running() != 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _running() == 2
    finally:
        ray.serve.shutdown()


def _running() -> int:
    deployment = ray.serve.status().applications["scheduled"].deployments["Nothing"]
    return deployment.replica_states.get("RUNNING", 0)
