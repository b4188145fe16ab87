"""Registered variants side by side, as tables and one HTML page: metrics, segments, curves, configuration, origin."""

import argparse

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.compare_models", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that train_ranking has run on")
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help="names, or how they begin; default: the newest and the champion"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Read, print, draw, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.files import write_atomically
    from cluster.reports import ReportClock
    from jobs.console import Console
    from jobs.model_comparison import compare, tables_of
    from jobs.model_comparison_page import comparison_page
    from train.gate import PAIR

    clock, console = ReportClock("compare_models"), Console()
    comparison = compare(settings, asked.dataset, asked.variants)
    console.tables(table for table in tables_of(comparison) if table.rows)
    for line in comparison.left_out:
        console.say(line)
    first = comparison.contestants[0].measured
    figures = {
        name.replace(f"/{PAIR}", f"/{each.pair.variant}"): value
        for each in comparison.contestants
        for name, value in each.measured.evaluation.figures.items()
        if name.endswith(f"/{PAIR}")
    }
    report = clock.finish(
        config={"dataset": asked.dataset, "variants": [each.pair.variant for each in comparison.contestants]},
        protocol=first.evaluation.protocol,
        data_version=first.data_version,
        figures=figures,
    )
    page = report.write(settings.home).with_suffix(".html")
    write_atomically(page, comparison_page(report, comparison))
    console.say(f"written: {page}")


if __name__ == "__main__":
    run_job(main)
