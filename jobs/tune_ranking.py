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

    from jobs.searching import run_search

    run_search("ranking", settings, asked.dataset, asked.config, asked.trials)


if __name__ == "__main__":
    run_job(main)
