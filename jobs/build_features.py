"""Compute the training examples of a data set with Ray Data, unless they are there already; or show what there is."""

import argparse

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.build_features", description=__doc__)
    parser.add_argument("--dataset", help="name of an ingested data set")
    parser.add_argument("--history-length", type=int, default=50, help="events of a user's history in an example")
    parser.add_argument("--list", action="store_true", help="show the feature views, and which examples there are")
    parser.add_argument("--check-leakage", action="store_true", help="prove that no view looks into the future")
    asked = parser.parse_args(arguments)
    if not (asked.dataset or asked.list or asked.check_leakage):
        parser.error("--dataset is missing, or --list or --check-leakage")
    return asked


def main(arguments: list[str]) -> None:
    """Build, and say what was built and where; or show, or check."""
    asked, settings = parse(arguments), Settings()
    if asked.list or asked.check_leakage:
        from data.offline.catalogue import show_features, show_leakage

        if asked.list:
            show_features(settings.home, asked.dataset, asked.history_length)
        if asked.check_leakage:
            show_leakage(asked.history_length)
        return

    from cluster.reports import ReportClock
    from cluster.session import connect
    from data.dataset import open_dataset
    from data.offline.pipeline import build_examples, examples_folder
    from data.offline.store import has_examples, read_feature_manifest
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
