"""Search the two-tower's hyperparameters with Ray Tune and Optuna; train_retrieval takes what is found."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune_retrieval", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument(
        "--config", type=Path, help="TOML to start from; default: the defaults, and what tune_ranking found"
    )
    parser.add_argument("--trials", type=int, help="trials; default: as in the config")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Search, keep the best, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.searching import finish_search, search_config, search_retrieval
    from jobs.training import open_workflow, require_trainable

    clock, console = ReportClock("tune_retrieval"), Console()
    config = search_config(settings, asked.dataset, asked.config, "retrieval", asked.trials)
    require_trainable(settings, asked.dataset)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console)
        outcome = search_retrieval(workflow, config, console)
    finish_search("retrieval", outcome, config, workflow, clock=clock, console=console)


if __name__ == "__main__":
    run_job(main)
