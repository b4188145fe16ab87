"""Make the champion before the present one champion again; an endpoint that runs takes it over by itself."""

import argparse

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.rollback_model", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that has had two champions")
    parser.add_argument("--to", metavar="VARIANT", help="an earlier champion; default: the one before the present one")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Roll back and say to what."""
    asked, settings = parse(arguments), Settings()

    from train.promotion import roll_back

    entry = roll_back(settings.tracking_uri, asked.dataset, asked.to)
    print(
        f"data set {asked.dataset}: variant {entry.to_variant} is champion again, {entry.from_variant} no longer "
        f"(entry {entry.number} of the ledger)"
    )


if __name__ == "__main__":
    run_job(main)
