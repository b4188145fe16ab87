"""Feature builds and point-in-time joins beside what one would otherwise use, and online reads; `make bench-features`.

    python -m benchmarks.features --sizes 1m 10m 50m

The sides take turns in one run, each in a process of its own; what they computed is compared before anything is said.
Generated events and ingested data sets stay in `$TOWERLINE_HOME/bench` for the next run.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.environments import DUCKDB, FEAST, python_with
from benchmarks.events import EventStream
from benchmarks.feature_checks import require_equal_features, require_equal_joins
from benchmarks.feature_report import print_figures, write_picture
from benchmarks.processes import Side, memory_bandwidth, run_side
from benchmarks.shop import examples_of, ingested
from benchmarks.views import LIKED, NEWEST_TTL
from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.dataset import Dataset
from data.offline.store import read_feature_manifest

SIZES = {"20k": 20_000, "1m": 1_000_000, "10m": 10_000_000, "50m": 50_000_000}
Command = list[str | Path | int]
MOST_IN_JOIN = 10_000_000
PARTS_OF_POLARS = 8
"""Where whole tables do not fit in memory."""
PROTOCOL = """\
Generated events of power-law users and items over 90 days, ingested once (not timed) into the bucketed data set that \
all sides read. Each side is a process of its own; wall by its own clock after imports and, for ours, after the start \
of Ray and of its workers; runs alternate, the median counts. Peak memory: all processes of a side at one time, shared \
pages once (PSS), sampled every second. Features: count, sum and mean over 4 windows, rate, seconds since, recency, \
last 10, of users and of items, 32 columns an event, zstd-1 Parquet. Polars computes whole tables; where that takes \
more than 70 % of the memory it works in parts, and the figure says so (polars_parts). Ours is written as a snapshot \
of synced files in date partitions, polars' as plain files. Results are compared column by column (recency to 1e-5). \
Point-in-time join: the newest of a user's events known at 1/10 as many examples, 5 % of events late, 10 columns, \
ttl 30 days; all sides are compared row by row, and a sample with a search through all events. The physical limit: \
bytes_mb are the files read and written; at gb_per_s/memory_copy, copying them once would take that much time."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1m", "10m", "50m"], help="events")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side up to 10 M events; one above")
    parser.add_argument("--without-online", action="store_true", help="leave out the online reads")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure, compare, and report."""
    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_features")
    home = settings.home / "bench"
    figures = {"gb_per_s/memory_copy": memory_bandwidth()}
    for size in asked.sizes:
        figures |= builds(home, size, asked.repeats)
    figures |= joins(home, min(MOST_IN_JOIN, max(SIZES[size] for size in asked.sizes)), asked.repeats)
    if {"10m", "50m"} <= set(asked.sizes):
        figures["cost_ratio/ours/50m_to_10m"] = figures["us_per_event/ours/50m"] / figures["us_per_event/ours/10m"]
    if not asked.without_online:
        python_with(*FEAST)
        figures |= _required(run_side(["-m", "benchmarks.online_read"])).answer
    report = clock.finish(config=vars(asked), protocol=PROTOCOL, data_version="generated, seed 0", figures=figures)
    print_figures(figures)
    path = report.write(settings.home)
    print(f"report {path}, picture {write_picture(figures, path.with_suffix('.png'))}")


def builds(home: Path, size: str, repeats: int) -> dict[str, float]:
    """Both sides of the feature build at one size."""
    dataset = ingested(home, EventStream(SIZES[size]), f"features-{size}")
    outputs = {side: home / "out" / side / "features" for side in ("ours", "polars")}
    command: Command = ["-m", "benchmarks.our_features", "build", home, dataset.name, outputs["ours"]]
    sides: dict[str, list[Side]] = {"ours": [], "polars": []}
    parts = 1
    for _ in range(repeats if SIZES[size] <= SIZES["10m"] else 1):
        sides["ours"].append(_required(_run(outputs["ours"], command)))
        peer = _run(outputs["polars"], _polars(dataset, outputs["polars"], parts))
        if peer is None:
            parts = PARTS_OF_POLARS
            peer = _run(outputs["polars"], _polars(dataset, outputs["polars"], parts))
        sides["polars"].append(_required(peer))
        require_equal_features(outputs["ours"], outputs["polars"])
    figures = _figures(sides, f"{{side}}/{size}") | {f"polars_parts/{size}": float(parts)}
    written = sum(file.stat().st_size for file in outputs["ours"].rglob("*.parquet"))
    read = sum(file.stat().st_size for file in dataset.path.glob("by_*/*.parquet"))
    assert read_feature_manifest(outputs["ours"]).examples == SIZES[size]
    figures |= {f"bytes_mb/read/{size}": read / 1e6, f"bytes_mb/written/{size}": written / 1e6}
    figures[f"us_per_event/ours/{size}"] = figures[f"wall_s/ours/{size}"] / SIZES[size] * 1e6
    shutil.rmtree(home / "out")
    return figures


def joins(home: Path, events: int, repeats: int) -> dict[str, float]:
    """All sides of the point-in-time join."""
    stream = EventStream(events, seed=1, late_share=0.05)
    dataset = ingested(home, stream, f"join-{events}")
    examples = examples_of(stream, home / "events" / f"examples-{events}.parquet")
    outputs = {side: home / "out" / side for side in ("ours", "polars", "duckdb")}
    by_user = f"{dataset.path}/by_user/*.parquet"
    commands: dict[str, Command] = {
        "ours": ["-m", "benchmarks.our_features", "join", home, dataset.name, examples, outputs["ours"]],
        "polars": ["-m", "benchmarks.polars_join", dataset.path, examples, outputs["polars"]],
        "duckdb": ["benchmarks/duckdb_join.py", by_user, examples, outputs["duckdb"], NEWEST_TTL.days, LIKED],
    }
    pythons = dict.fromkeys(commands, Path(sys.executable)) | {"duckdb": python_with(DUCKDB)}
    sides: dict[str, list[Side]] = {side: [] for side in commands}
    for _ in range(repeats):
        for side, command in commands.items():
            sides[side].append(_required(_run(outputs[side], command, pythons[side])))
        require_equal_joins(dataset, outputs)
    figures = _figures(sides, "point_in_time/{side}")
    figures["rows_per_s/point_in_time/ours"] = (events // 10) / figures["wall_s/point_in_time/ours"]
    shutil.rmtree(home / "out")
    return figures


def _polars(dataset: Dataset, output: Path, parts: int) -> Command:
    return ["-m", "benchmarks.polars_features", dataset.path, output, parts]


def _run(output: Path, command: Command, python: Path = Path(sys.executable)) -> Side | None:
    """Run a side that writes to `output`, with nothing there."""
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    return run_side(command, python)


def _required(side: Side | None) -> Side:
    if side is None:
        raise TowerlineError(
            "a side of the benchmark needs more than 70 % of this machine's memory; take a smaller size"
        )
    return side


def _figures(sides: Mapping[str, list[Side]], place: str) -> dict[str, float]:
    """Medians, and ours over each other's, under names such as `wall_s/<place>`."""
    figures: dict[str, float] = {}
    for side, runs in sides.items():
        name = place.format(side=side)
        figures[f"wall_s/{name}"] = median(run.wall_s for run in runs)
        figures[f"cpu_s/{name}"] = median(float(run.answer["cpu_s"]) for run in runs)
        figures[f"peak_rss_mb/{name}"] = max(run.peak_mb for run in runs)
    ours = figures[f"wall_s/{place.format(side='ours')}"]
    for side in sides:
        if side != "ours":
            name = place.format(side=side)
            figures[f"wall_ratio/{name}"] = ours / figures[f"wall_s/{name}"]
    return figures


if __name__ == "__main__":
    run_job(main)
