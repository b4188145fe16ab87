"""Evaluate what is registered, beside the candidate sources, by any protocol: figures with intervals and segments."""

import argparse

from cluster.job import run_job
from cluster.settings import Settings

PROTOCOLS = ("leave-one-out", "global-time", "strong-generalisation")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; what only one protocol knows is None for the others."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate_models", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    one_out = parser.add_argument_group("leave-one-out")
    one_out.add_argument("--cut-off", type=int, help="how many of each user's last events to leave out: 0, 1 or 2")
    in_time = parser.add_argument_group("global-time")
    in_time.add_argument("--test-share", type=float, help="of all events, the last ones; default 0.1")
    strong = parser.add_argument_group("strong-generalisation")
    strong.add_argument(
        "--held-out-share", type=float, help="of the users, as many to validate as to test; default 0.1"
    )
    strong.add_argument("--min-value", type=float, help="events of a smaller value are left out (4: liked films)")
    strong.add_argument("--seed", type=int, help="of the choice of users and of their items; default 0")
    parser.add_argument(
        "--refit", action="store_true", help="train the registered configuration again, on the protocol's train split"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure, print, draw, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from data.dataset import open_dataset
    from jobs.console import Console
    from jobs.evaluation import measured_again, measured_as_registered, protocol_of, write_evaluation
    from jobs.evaluation_tables import tables_of

    clock, console = ReportClock("evaluate_models"), Console()
    protocol = protocol_of(asked)
    dataset = open_dataset(settings.home, asked.dataset)
    if asked.refit:
        contest = measured_again(settings, dataset, protocol, console)
    else:
        contest = measured_as_registered(settings, dataset, protocol)
    for line in contest.left_out:
        console.say(line)
    console.tables(tables_of(contest.measurements))
    for line in contest.measurements.evaluation.notes:
        console.say(line)
    for path in write_evaluation(clock, settings.home, dataset, vars(asked), contest):
        console.say(f"written: {path}")


if __name__ == "__main__":
    run_job(main)
