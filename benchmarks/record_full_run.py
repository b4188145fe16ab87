"""Keep what `make bench-quality` found last as the full configuration that the demo measures itself against.

    python -m benchmarks.record_full_run

Reads that benchmark's report in TOWERLINE_HOME and writes `jobs/configs/demo_full.json` (see `jobs.demo`).
"""

import argparse
from pathlib import Path

from benchmarks.quality import PROTOCOLS
from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.job import run_job
from cluster.reports import Report
from cluster.settings import Settings
from jobs.demo import FULL_RUN, METRIC, FullRun
from jobs.quickstart import DATASET

PROTOCOL = next(iter(PROTOCOLS))
"""What the demo measures by."""
SYSTEMS = ("two_tower", "two_tower_ranker")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_full_run", description=__doc__)
    parser.add_argument("--output", type=Path, default=FULL_RUN, help="file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Read, check, write."""
    asked, path = parse(arguments), Settings().home / "reports" / "bench_quality.json"
    if not path.exists():
        raise TowerlineError(f"{path} is not there; run `make bench-quality` first")
    full = full_run_of(Report.model_validate_json(path.read_text()))
    write_atomically(asked.output, full.model_dump_json(indent=2) + "\n")
    print(f"{asked.output}: {full.figures} ({full.words})")


def full_run_of(report: Report) -> FullRun:
    """What a report of `benchmarks.quality` says of our models.

    Raises:
        TowerlineError: it is of another data set or protocol than the demo's, or of changed files, or lacks a system.
    """
    config, protocol_hash = report.config, PROTOCOLS[PROTOCOL].hash
    for name, found, expected in (
        ("data set", config["dataset"], DATASET),
        ("first protocol", config["protocols"][0], PROTOCOL),
        ("its hash", f"{PROTOCOL}: {protocol_hash}," in report.protocol, True),
        ("systems", sorted(set(SYSTEMS) & set(config["systems"])), sorted(SYSTEMS)),
        ("changed files", report.git_commit.endswith("-dirty"), False),
    ):
        if found != expected:
            raise TowerlineError(
                f"report bench_quality of {report.started:%Y-%m-%d %H:%M}: {name}: {found!r}, the demo needs "
                f"{expected!r}; run `make bench-quality` again, with everything committed"
            )
    names = [f"{metric}/{system}" for metric in (METRIC, "seconds") for system in SYSTEMS]
    chosen = " ".join(SYSTEMS)
    return FullRun(
        command=f"python -m benchmarks.quality --seeds {config['seeds']} --systems {chosen} --protocols {PROTOCOL}",
        started=report.started,
        git_commit=report.git_commit,
        data_version=report.data_version,
        protocol_hash=protocol_hash,
        seeds=config["seeds"],
        settings={system: config["settings"][system] for system in SYSTEMS},
        figures={name: report.figures[name] for name in names},
    )


if __name__ == "__main__":
    run_job(main)
