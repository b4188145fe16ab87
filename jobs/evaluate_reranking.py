"""Find out whether the language model should re-rank for users of whom few events are known, and up to how many.

The registered pair of models is trained again on the protocol's train split. Then the same users are asked about with
only their last 0, 1, 2, … events known. What is found on the validation events and holds on the test events is written
for serving to read; otherwise it is written that re-ranking stays off.
"""

import argparse

from cluster.job import run_job
from cluster.settings import Settings

PROTOCOLS = ("leave-one-out", "global-time", "strong-generalisation")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate_reranking", description=__doc__)
    option = parser.add_argument
    option("--dataset", required=True, help="name of a data set that has a champion")
    option("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    option("--users", type=int, default=100, help="how many to ask about, drawn by the seed; default: 100")
    option("--known-events", type=int, nargs="+", default=[0, 1, 2, 3, 5], metavar="N", help="default: 0 1 2 3 5")
    option("--candidates", type=int, default=10, help="how many of the ranker's first items to re-rank; default: 10")
    option("--seed", type=int, default=0, help="of the choice of users; default: 0")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train again, measure, decide, write, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from data.dataset import open_dataset
    from jobs.console import Console
    from jobs.reranking import RerankingConfig, decide, measured, write_decision
    from jobs.reranking_report import table_of

    clock, console = ReportClock("evaluate_reranking"), Console()
    config = RerankingConfig.model_validate({n: v for n, v in vars(asked).items() if n != "dataset"})
    dataset = open_dataset(settings.home, asked.dataset)
    measurements = measured(settings, dataset, config, console)
    decision = decide(measurements)
    console.tables(table_of(split, measurements) for split in measurements.buckets)
    console.say(decision.words)
    for path in write_decision(clock, settings.home, dataset, measurements, decision):
        console.say(f"written: {path}")


if __name__ == "__main__":
    run_job(main)
