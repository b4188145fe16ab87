"""The policies as plain classes, and as Ray Serve's controller asks them."""

from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.errors import TowerlineError
from serve.autoscaling import (
    Autoscaler,
    AutoscalingPolicyConfig,
    Forecast,
    ForecastConfig,
    Load,
    LoadConfig,
    Observation,
    Schedule,
    ScheduleConfig,
    Window,
    observation,
    policy_of,
)


def seen(moment: datetime | float = 0.0, **fields: Any) -> Observation:
    second = moment.timestamp() if isinstance(moment, datetime) else moment
    return Observation(**({"time": second, "replicas": 4, "ongoing_requests": 0.0} | fields))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_load_aims_at_its_targets() -> None:
    load = Load(LoadConfig(target_ongoing_requests=8, target_queue_ms=50, target_batch_fill=0.5))
    assert load.desired(seen(ongoing_requests=24)) == 3
    assert load.desired(seen(ongoing_requests=24, queue_ms=49, batch_fill=0.5)) == 3
    assert load.desired(seen(ongoing_requests=24, queue_ms=75)) == 6
    assert load.desired(seen(ongoing_requests=24, batch_fill=0.75)) == 6
    assert load.desired(seen(ongoing_requests=24, queue_ms=5000)) == 8


def test_what_replicas_do_not_report_or_nobody_aims_at_counts_for_nothing() -> None:
    assert Load(LoadConfig(target_ongoing_requests=8)).desired(seen(ongoing_requests=8, queue_ms=900)) == 1


def test_a_window_opens_before_its_time_and_closes_on_it() -> None:
    window = Window(days=("mon",), start=time(9), end=time(12), replicas=5)
    schedule = Schedule(ScheduleConfig(windows=(window,), lead_s=60))
    expected = {"08:58:59": 0, "08:59:00": 5, "09:00:00": 5, "11:59:59": 5, "12:00:00": 0}
    assert {hour: schedule.desired(seen(at(f"2026-11-23T{hour}"))) for hour in expected} == expected
    assert schedule.desired(seen(at("2026-11-24T10:00:00"))) == 0


def test_a_window_may_pass_midnight_and_the_most_of_several_counts() -> None:
    night = Window(days=("fri",), start=time(22), end=time(2), replicas=3)
    sale = Window(start=time(1), end=time(1, 30), replicas=9)
    schedule = Schedule(ScheduleConfig(windows=(night, sale), lead_s=0))
    expected = {"27T21:59": 0, "27T22:00": 3, "28T00:30": 3, "28T01:10": 9, "28T01:45": 3, "28T02:00": 0, "28T22:30": 0}
    assert {when: schedule.desired(seen(at(f"2026-11-{when}:00"))) for when in expected} == expected


def test_a_lead_over_midnight_belongs_to_the_day_of_the_window() -> None:
    window = Window(days=("tue",), start=time(0), end=time(1), replicas=2)
    schedule = Schedule(ScheduleConfig(windows=(window,), lead_s=600))
    assert [schedule.desired(seen(at(f"2026-11-{when}:00"))) for when in ("23T23:49", "23T23:50", "24T23:55")] == [
        0,
        2,
        0,
    ]


def test_windows_are_hours_of_the_wall_clock_of_their_zone() -> None:
    window = Window(start=time(9), end=time(10), replicas=2)
    schedule = Schedule(ScheduleConfig(windows=(window,), timezone="Europe/Paris", lead_s=0))
    hours = ("2026-07-01T07:30:00", "2026-07-01T08:30:00", "2026-12-01T07:30:00", "2026-12-01T08:30:00")
    assert [schedule.desired(seen(at(hour))) for hour in hours] == [2, 0, 0, 2]


def test_a_forecast_knows_what_came_yesterday() -> None:
    forecast = Forecast(ForecastConfig(requests_per_s=10, season=2400, slot_s=100, lead_s=0, margin=0))
    rates = [100.0 if 10 <= slot < 12 else 20.0 for slot in range(24)]
    first = [forecast.desired(seen(100 * slot + 50, requests_per_s=rate)) for slot, rate in enumerate(rates)]
    assert first == [0.0] * 24
    second = [forecast.desired(seen(2400 + 100 * slot + 50, requests_per_s=rate)) for slot, rate in enumerate(rates)]
    assert second[1:] == [rate / 10 for rate in rates[1:]]


def test_a_forecast_looks_ahead_and_leaves_a_margin() -> None:
    forecast = Forecast(ForecastConfig(requests_per_s=10, season=1000, slot_s=100, lead_s=200, margin=0.5))
    for slot in range(21):
        forecast.desired(seen(100 * slot + 50, requests_per_s=100.0 if slot % 10 == 5 else 20.0))
    asked = [forecast.desired(seen(2000 + 100 * slot + 50, requests_per_s=20.0)) for slot in (1, 2, 3)]
    assert asked == pytest.approx([3.0, 3.0, 15.0])


def test_a_busier_day_raises_the_forecast_within_bounds() -> None:
    forecast = Forecast(ForecastConfig(requests_per_s=10, season=1000, slot_s=100, lead_s=0, margin=0, smoothing=0.01))
    for slot in range(10):
        forecast.desired(seen(100 * slot + 50, requests_per_s=50.0))
    asked = [forecast.desired(seen(100 * slot + 50, requests_per_s=5000.0)) for slot in range(10, 20)]
    assert asked[0] == pytest.approx(5.0)
    assert asked == sorted(asked)
    assert 8 < asked[-1] <= 11


def test_a_forecast_goes_on_from_its_file_and_refuses_one_of_other_slots(tmp_path: Path) -> None:
    config = ForecastConfig(requests_per_s=10, season=1000, slot_s=100, lead_s=0, history=tmp_path / "a" / "h.json")
    forecast = Forecast(config)
    for slot in range(11):
        forecast.desired(seen(100 * slot + 50, requests_per_s=20.0 + slot))
    again = Forecast(config)
    asked = [policy.desired(seen(1150, requests_per_s=None)) for policy in (forecast, again)]
    assert asked[0] == asked[1] > 0
    with pytest.raises(TowerlineError, match=r"h\.json has 10 slots of a season of 1000 s, expected 20"):
        Forecast(config.model_copy(update={"slot_s": 50.0}))
    (tmp_path / "a" / "h.json").write_text("{")
    with pytest.raises(TowerlineError, match=r"h\.json is no history"):
        Forecast(config)


def test_a_history_that_cannot_be_kept_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config = ForecastConfig(requests_per_s=10, season=1000, slot_s=100, history=tmp_path / "file" / "h.json")
    forecast = Forecast(config)
    assert [forecast.desired(seen(100 * slot, requests_per_s=1.0)) for slot in range(2)] == [0.0, 0.0]
    assert "is not kept" in caplog.text


def test_the_most_of_all_policies_counts() -> None:
    window = Window(start=time(0), end=time(12), replicas=7)
    policy = policy_of(AutoscalingPolicyConfig(schedule=ScheduleConfig(windows=(window,))))
    assert policy.desired(seen(at("2026-11-23T06:00:00"), ongoing_requests=32)) == 7
    assert policy.desired(seen(at("2026-11-23T06:00:00"), ongoing_requests=320)) == 20


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"schedule": {"windows": [], "timezone": "UTC"}}, "at least 1 item"),
        ({"schedule": {"windows": [{"start": "9:00", "end": "10:00", "replicas": 1}], "timezone": "Mars"}}, "Mars"),
        ({"schedule": {"windows": [{"start": "09:00", "end": "10:00", "replicas": 0}]}}, "greater than 0"),
        ({"forecast": {"requests_per_s": 5, "season": "year"}}, "year"),
        ({"laod": {}}, "laod"),
    ],
)
def test_impossible_policies_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AutoscalingPolicyConfig.model_validate(config)


def context(**fields: Any) -> AutoscalingContext:
    known: dict[str, Any] = {
        "deployment_id": DeploymentID(name="Gateway"),
        "deployment_name": "Gateway",
        "app_name": None,
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "running_replicas": [],
        "total_num_requests": 48.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "raw_metrics": {},
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 9,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 1000.0,
        "config": AutoscalingConfig(),
    }
    return AutoscalingContext(**(known | fields))


def test_what_replicas_report_is_added_up_or_the_worst_of_them() -> None:
    reported = {
        "requests_per_s": {"a": 10.0, "b": 30.0},
        "queue_ms": {"a": 5.0, "b": float("nan")},
        "batch_fill": {"a": 0.2, "b": 0.4},
    }
    assert observation(context(aggregated_metrics=reported)) == Observation(1000.0, 2, 48.0, 40.0, 5.0, 0.4)
    assert observation(context()) == Observation(1000.0, 2, 48.0)
    with pytest.raises(TowerlineError, match="no time for Gateway"):
        observation(context(current_time=None))


def test_ray_serve_makes_the_policy_from_its_own_config() -> None:
    config = AutoscalingPolicyConfig(load=LoadConfig(target_ongoing_requests=12))
    policy = AutoscalingPolicy(policy_function=Autoscaler, policy_kwargs=config.model_dump(mode="json"))
    scaled = AutoscalingConfig(max_replicas=9, upscale_delay_s=0, policy=policy)
    desired, _ = scaled.policy.get_policy()(**scaled.policy.policy_kwargs)(context(config=scaled))
    assert desired == 4
