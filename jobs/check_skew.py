"""Compute the features behind logged answers once more, from the events, and report every difference."""

import argparse
import sys
from typing import TYPE_CHECKING

from cluster.job import run_job
from cluster.settings import Settings

if TYPE_CHECKING:
    from serve.skew_check import Checked

DIFFERENT = 1
"""Exit status when a feature was not what it should have been."""

PROTOCOL = (
    "every feature of sampled decisions, as of the decision's moment and from the events the store knew; exact, "
    "recency-weighted sums to the precision of a float32"
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.check_skew", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a data set that has been served")
    parser.add_argument("--sample", type=int, default=1000, help="decisions to check at most; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Check and print what was found; status 1 if there is any difference."""
    asked = parse(arguments)

    from data.checks.skew_table import print_skew

    checked = check(Settings(), asked.dataset, asked.sample, asked.seed)
    print_skew(checked.skew)
    for reason, count in checked.sample.skipped.items():
        print(f"skipped {count:,} decisions: {reason}")
    print(checked)
    if checked.skew.differences.height:
        sys.exit(DIFFERENT)


def check(settings: Settings, dataset: str, sample: int, seed: int) -> "Checked":
    """Check, and leave a report with, beside it, the list of all differences."""
    from cluster.files import write_atomically
    from cluster.reports import ReportClock
    from serve.skew_check import check_skew

    clock = ReportClock("check_skew")
    checked = check_skew(settings, dataset, sample, seed)
    config = {"dataset": dataset, "sample": sample, "seed": seed}
    version = checked.dataset.manifest.data_version
    report = clock.finish(config=config, protocol=PROTOCOL, data_version=version, figures=checked.figures())
    listed = report.write(settings.home).with_name("check_skew_differences.json")
    write_atomically(listed, checked.skew.differences.write_json())
    return checked


if __name__ == "__main__":
    run_job(main)
