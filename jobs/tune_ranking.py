"""Search the ranker's hyperparameters with Ray Tune and Optuna; train_ranking takes what is found."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune_ranking", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that train_retrieval has run on")
    parser.add_argument(
        "--config", type=Path, help="TOML to start from; default: the defaults, and what tune_retrieval found"
    )
    parser.add_argument("--trials", type=int, help="trials; default: as in the config")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Search, keep the best, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.searching import finish_search, search_config, search_ranking
    from jobs.training import open_workflow, origin_of_challenger, require_trainable

    clock, console = ReportClock("tune_ranking"), Console()
    config = search_config(settings, asked.dataset, asked.config, "ranking", asked.trials)
    require_trainable(settings, asked.dataset)
    origin = origin_of_challenger(settings, asked.dataset)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console, origin=origin)
        outcome = search_ranking(workflow, config, console)
    finish_search("ranking", outcome, config, workflow, clock=clock, console=console)


if __name__ == "__main__":
    run_job(main)
