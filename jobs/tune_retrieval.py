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

    from jobs.searching import run_search

    run_search("retrieval", settings, asked.dataset, asked.config, asked.trials)


if __name__ == "__main__":
    run_job(main)
