"""Compute the training examples of a data set with Ray Data, unless they are there already."""

import argparse

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.build_features", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument("--history-length", type=int, default=50, help="events of a user's history in an example")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Build, and say what was built and where."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from data.dataset import open_dataset
    from data.pipeline import build_examples, examples_folder, has_examples, read_feature_manifest
    from data.summary import print_features, report_features

    clock = ReportClock("build_features")
    dataset = open_dataset(settings.home, asked.dataset)
    folder = examples_folder(settings.home, dataset, asked.history_length)
    if not has_examples(folder):
        with connect(settings):
            build_examples(dataset, folder, asked.history_length)
    manifest = read_feature_manifest(folder)
    print_features(folder, manifest)
    report_features(clock, manifest, vars(asked)).write(settings.home)


if __name__ == "__main__":
    run_job(main)
