"""Train a two-tower on a data set, compare it with the baselines, and register it as the challenger."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_retrieval", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument("--config", type=Path, help="TOML; default: what tune_retrieval found, else the defaults")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train, compare, register, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.training import found_config, open_workflow, read_training_config, report_of, require_trainable

    clock, console = ReportClock("train_retrieval"), Console()
    config = read_training_config(asked.config or found_config(settings, asked.dataset))
    require_trainable(settings, asked.dataset)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console)
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
