"""The simulator on traces whose outcome is known, and the policies beside Ray's default on a short day."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from benchmarks.autoscaling import figures_of, simulate, write_picture
from benchmarks.autoscaling_simulator import Replica, Simulator, ray_default
from benchmarks.load_traces import diurnal, flash_sale

REPLICA = Replica(requests_per_s=10, service_s=0.1, start_s=5, deadline_s=0.6)
BOUNDS = {"min_replicas": 1, "max_replicas": 4, "look_back_period_s": 11.0}


def fixed(count: float) -> Callable[[AutoscalingContext], tuple[float, dict[str, Any]]]:
    return lambda _: (count, {})


def test_a_replica_answers_what_it_can_and_misses_the_rest() -> None:
    """10 a second are answered, 5 can wait for their deadline, and from then on 10 of 20 are missed."""
    simulator = Simulator(REPLICA, AutoscalingConfig(**BOUNDS), fixed(1))
    outcome = simulator.run(np.full(10, 20))
    assert outcome.missed_T == [5.0] + [10.0] * 9
    assert (outcome.requests, outcome.replica_seconds) == (200, 10)


def test_more_replicas_are_paid_for_at_once_and_help_when_they_have_started() -> None:
    simulator = Simulator(REPLICA, AutoscalingConfig(**BOUNDS, upscale_delay_s=0), fixed(2))
    outcome = simulator.run(np.full(10, 20))
    assert outcome.replicas_T == [2] * 10
    assert outcome.missed_T == [5.0] + [10.0] * 4 + [0.0] * 5


def test_ray_waits_for_its_delays_and_keeps_the_bounds() -> None:
    config = AutoscalingConfig(**BOUNDS, upscale_delay_s=3, downscale_delay_s=4, target_ongoing_requests=1)
    outcome = Simulator(REPLICA, config, ray_default).run(np.array([100] * 10 + [0] * 40))
    assert outcome.replicas_T[:4] == [1, 1, 1, 4]
    assert outcome.replicas_T[-1] == 1
    assert max(outcome.replicas_T) == 4


def test_what_happens_while_learning_counts_for_nobody() -> None:
    outcome = Simulator(REPLICA, AutoscalingConfig(**BOUNDS), fixed(1)).run(np.full(10, 20), measured_from_s=8)
    assert (outcome.requests, outcome.missed, outcome.replica_seconds) == (40, 20.0, 2)


@pytest.mark.parametrize(
    "trace", [diurnal(3600, 3, 600, seed=0), flash_sale(3600, 3, 600, seed=0)], ids=lambda t: t.name
)
def test_ours_misses_at_most_half_for_no_more_replica_hours(trace: Any, tmp_path: Path) -> None:
    outcomes = simulate(trace, seed=0)
    figures = figures_of({trace.name: outcomes})
    ours = "load_forecast" if trace.sale is None else "load_forecast_schedule"
    assert figures[f"replica_hours_ratio/{trace.name}/{ours}"] <= 1
    assert outcomes[ours].missed <= outcomes["ray_default"].missed / 2
    assert outcomes["ray_default"].missed > 0
    picture = write_picture([trace], {trace.name: outcomes}, tmp_path / "traces.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
