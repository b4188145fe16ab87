"""Autoscaling policies beside Ray Serve's default, on the same simulated traces; `make bench-autoscaling`."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import rich.box
from ray.serve.config import AutoscalingConfig
from rich.console import Console
from rich.table import Table

from benchmarks.autoscaling_simulator import Decide, Outcome, Replica, Simulator, ray_default
from benchmarks.load_traces import Trace, diurnal, flash_sale, recorded
from benchmarks.quality import MOVIELENS, opened
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings
from serve.autoscaling import (
    DAYS,
    Autoscaler,
    AutoscalingPolicyConfig,
    ForecastConfig,
    LoadConfig,
    ScheduleConfig,
    Window,
)

PROTOCOL = """\
A replica answers 50 requests a second, 0.1 s each, and starts in 20 s; an answer after 0.5 s is missed. Requests are \
drawn second by second from a Poisson distribution, the same for every policy. The first day (two weeks of the \
recorded trace) is for learning and counts for nobody. Every policy aims at 4 requests under way per replica, between \
2 and 60 replicas. Ray's default policy has its own default delays. Replica-hours include the start."""
TARGET, LEAST, MOST = 4.0, 2, 60
DAY_S = 86_400
RECORDED_SPEED = 1008
"""A recorded week in ten minutes."""


@dataclass(frozen=True)
class Contestant:
    """A policy with the delays that go with it."""

    config: AutoscalingConfig
    decide: Decide


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscaling", description=__doc__)
    parser.add_argument("--dataset", default=MOVIELENS, help="whose events are the recorded trace")
    parser.add_argument("--days", type=int, default=3, help="of the generated traces, the first for learning")
    parser.add_argument("--day-s", type=int, default=DAY_S, help="seconds of a generated day")
    parser.add_argument("--seed", type=int, default=0, help="of the traces")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Simulate, print, report."""
    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_autoscaling")
    dataset = opened(settings, asked.dataset)
    traces = [
        diurnal(asked.day_s, asked.days, 1500, asked.seed),
        flash_sale(asked.day_s, asked.days, 1500, asked.seed),
        recorded(dataset.events(), 1500, RECORDED_SPEED),
    ]
    outcomes = {trace.name: simulate(trace, asked.seed) for trace in traces}
    figures = figures_of(outcomes)
    print_figures(outcomes)
    report = clock.finish(
        config=vars(asked), protocol=PROTOCOL, data_version=dataset.manifest.data_version, figures=figures
    )
    path = report.write(settings.home)
    print(f"report {path}, picture {write_picture(traces, outcomes, path.with_suffix('.png'))}")


def simulate(trace: Trace, seed: int) -> dict[str, Outcome]:
    """Every policy on a trace."""
    arrivals_T = trace.arrivals(seed)
    outcomes = {}
    for name, contestant in contestants(trace).items():
        simulator = Simulator(Replica(), contestant.config, contestant.decide)
        outcomes[name] = simulator.run(arrivals_T, trace.measured_from_s)
        print(f"{trace.name}, {name}: {outcomes[name].missed:,.0f} missed", flush=True)
    return outcomes


def contestants(trace: Trace) -> dict[str, Contestant]:
    """Ray's default, and ours: load alone, with the forecast, and, where a sale was announced, with the schedule."""
    default = AutoscalingConfig(min_replicas=LEAST, max_replicas=MOST, target_ongoing_requests=TARGET)
    load = LoadConfig(target_ongoing_requests=TARGET)
    forecast = ForecastConfig(requests_per_s=40, season=trace.season_s, slot_s=trace.season_s / 288, lead_s=60)
    policies = {
        "load": AutoscalingPolicyConfig(load=load),
        "load_forecast": AutoscalingPolicyConfig(load=load, forecast=forecast),
    }
    if trace.sale is not None:
        policies["load_forecast_schedule"] = AutoscalingPolicyConfig(
            load=load, forecast=forecast, schedule=_announced(trace)
        )
    ours = default.model_copy(update={"look_back_period_s": 10.0, "upscale_delay_s": 0.0, "downscale_delay_s": 60.0})
    found = {"ray_default": Contestant(default, ray_default)}
    return found | {
        name: Contestant(ours, Autoscaler(**policy.model_dump(mode="json"))) for name, policy in policies.items()
    }


def _announced(trace: Trace) -> ScheduleConfig:
    """A window for the sale. The trace begins with the epoch."""
    assert trace.sale is not None
    start, end = (datetime.fromtimestamp(second, UTC) for second in trace.sale)
    end += timedelta(seconds=59)
    window = Window(
        days=(DAYS[start.weekday()],),
        start=start.time().replace(second=0),
        end=end.time().replace(second=0),
        replicas=40,
    )
    return ScheduleConfig(windows=(window,), lead_s=60)


def figures_of(outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, float]:
    """Replica-hours and missed requests, and both as a ratio to Ray's default."""
    figures = {}
    for trace, by_policy in outcomes.items():
        default = by_policy["ray_default"]
        for name, outcome in by_policy.items():
            figures[f"replica_hours/{trace}/{name}"] = outcome.replica_hours
            figures[f"missed/{trace}/{name}"] = outcome.missed
            figures[f"replica_hours_ratio/{trace}/{name}"] = outcome.replica_hours / default.replica_hours
            if default.missed:
                figures[f"missed_ratio/{trace}/{name}"] = outcome.missed / default.missed
    return figures


def print_figures(outcomes: Mapping[str, Mapping[str, Outcome]]) -> None:
    """One table."""
    table = Table("trace", "policy", "replica-hours", "of default", "missed", "of default", box=rich.box.SIMPLE_HEAD)
    for trace, by_policy in outcomes.items():
        default = by_policy["ray_default"]
        for name, outcome in by_policy.items():
            missed = f"{outcome.missed / default.missed:.3f}" if default.missed else "-"
            hours = f"{outcome.replica_hours / default.replica_hours:.3f}"
            row = (trace, name, f"{outcome.replica_hours:.1f}", hours)
            table.add_row(*row, f"{outcome.missed:,.0f} of {outcome.requests:,}", missed)
    Console(highlight=False, width=110).print(table)


def write_picture(traces: list[Trace], outcomes: Mapping[str, Mapping[str, Outcome]], path: Path) -> Path:
    """Replicas over time beside what the requests need, a panel per trace."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(12, 3.2 * len(traces)), layout="constrained")
    axes = chart.subplots(len(traces), 1, squeeze=False)[:, 0]
    for axis, trace in zip(axes, traces, strict=True):
        shown = slice(trace.measured_from_s, None, max(1, len(trace.rates_T) // 2000))
        hours = [second / 3600 for second in range(len(trace.rates_T))][shown]
        axis.fill_between(hours, trace.rates_T[shown] / Replica().requests_per_s, color="0.85", label="needed")
        for name, outcome in outcomes[trace.name].items():
            axis.plot(hours, outcome.replicas_T[shown], linewidth=1, label=f"{name}: {outcome.missed:,.0f} missed")
        axis.set(title=trace.name, xlabel="hours", ylabel="replicas")
        axis.legend(fontsize=8)
    chart.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    run_job(main)
