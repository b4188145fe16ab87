"""Make a registered variant the champion, if it passes the gate; an endpoint that runs takes it over by itself."""

import argparse
import sys
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings

NOT_PROMOTED = 1
"""Exit status when the gate did not let the variant through."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.promote_model", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that train_ranking has run on")
    parser.add_argument("--variant", help="its name, or how it begins; default: the one registered last")
    parser.add_argument("--force", metavar="REASON", help="promote it whatever the gate says; kept in the ledger")
    parser.add_argument("--config", type=Path, help="TOML, [gate] of it; default: the defaults")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Judge, and promote or not; status 1 if not."""
    asked, settings = parse(arguments), Settings()

    from jobs.console import Console
    from jobs.training import read_training_config
    from train.ledger import read_ledger
    from train.promotion import promote
    from train.registry import find_pair, newest_pair

    gate, address = read_training_config(asked.config).gate, settings.tracking_uri
    pair = find_pair(address, asked.dataset, asked.variant) if asked.variant else newest_pair(address, asked.dataset)
    if read_ledger(address, asked.dataset).champion == pair.variant:
        print(f"variant {pair.variant} is champion of data set {asked.dataset} already")
        return
    decision = promote(address, asked.dataset, pair.variant, gate, asked.force, home=settings.home)
    Console().decision(decision)
    if decision.entry is None:
        sys.exit(NOT_PROMOTED)


if __name__ == "__main__":
    run_job(main)
