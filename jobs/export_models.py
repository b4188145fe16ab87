"""Export the models that serve as ONNX files, checked against torch, with what int8 and a student cost and gain."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.export_models", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that train_ranking has run on")
    parser.add_argument("--variant", help="a registered variant, or how its name begins; default: the champion")
    parser.add_argument("--output", type=Path, help="folder to write; default: exports/DATASET-VARIANT in the home")
    parser.add_argument("--int8", action="store_true", help="quantise the networks, too")
    parser.add_argument("--student", action="store_true", help="distil, register and export a smaller two-tower, too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Export, measure, print, draw, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.files import write_atomically
    from cluster.reports import ReportClock
    from jobs.console import Console
    from jobs.export_tables import export_page, table_of
    from jobs.exporting import export_variant, open_source
    from train.export_figures import figures_of

    clock, console = ReportClock("export_models"), Console()
    source = open_source(settings, asked.dataset, asked.variant)
    folder = asked.output or settings.home / "exports" / f"{asked.dataset}-{source.pair.variant[:8]}"
    outcome = export_variant(settings, source, folder.absolute(), console, int8=asked.int8, student=asked.student)
    console.tables([table_of(outcome)])
    for line in outcome.notes:
        console.say(line)
    report = clock.finish(
        config={**vars(asked), "output": str(outcome.folder), "variant": source.pair.variant},
        protocol=f"{source.cases.protocol.hash}: {source.cases.protocol.words}",
        data_version=source.dataset.manifest.data_version,
        figures=figures_of(outcome.costs, outcome.qualities),
    )
    page = report.write(settings.home).with_suffix(".html")
    write_atomically(page, export_page(report, outcome, outcome.notes))
    for path in (outcome.folder, page):
        console.say(f"written: {path}")


if __name__ == "__main__":
    run_job(main)
