"""Train a two-tower on a data set, compare it with the baselines, and register it as the challenger.

From scratch or, with --from, from a registered version on: it then learns only the events that this one has not learnt.
"""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_retrieval", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument("--config", type=Path, help="TOML; default: what tune_retrieval found, else the defaults")
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="VERSION",
        help="go on from this version of the registered two-tower, or from that of the champion or the challenger",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train, compare, register, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.training import open_workflow, plan_retrieval, report_of, require_trainable

    clock, console = ReportClock("train_retrieval"), Console()
    require_trainable(settings, asked.dataset)
    config, origin = plan_retrieval(settings, asked.dataset, asked.config, asked.origin)
    if origin is not None and not origin.new_events:
        console.say(f"nothing to train: data set {asked.dataset} has no event that is new to {origin.name}")
        return
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console, origin=origin)
        if origin is not None:
            console.say(origin.plan(workflow.examples))
        trained = workflow.train_retrieval(config.retrieval)
        measured = workflow.compare(trained.model)
        version = workflow.register_challenger(trained, config.retrieval, measured)
    workflow.forget()
    console.comparison(measured.evaluation)
    console.say(f"registered {asked.dataset}-two-tower version {version}, alias challenger")
    curves = {"two-tower": trained.history}
    console.say(f"report: {report_of(clock, workflow, config, measured.evaluation, curves).write(settings.home)}")


if __name__ == "__main__":
    run_job(main)
