"""Read events, items and users into a data set: your own files, or MovieLens-100K, which comes along."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.ingest_events", description=__doc__)
    option = parser.add_argument
    option("--dataset", required=True, help="name to give it; movielens-100k needs no files")
    option("--events", type=Path, help="Parquet or CSV (.csv, .tsv, .gz): one event a row")
    option("--items", type=Path, help="Parquet or CSV: one item a row")
    option("--users", type=Path, help="Parquet or CSV: one user a row")
    option("--columns", nargs="+", default=[], metavar="NAME=YOURS", help="e.g. user_id=uid item_id=sku event_time=ts")
    option("--time-unit", choices=["s", "ms", "us"], help="of times that are numbers since 1970 UTC")
    option("--event-type", default="interaction", help="of events that have no column event_type")
    option("--item-title", metavar="COLUMN", help="default: title, if there is one")
    option("--item-attributes", type=_names, default=[], metavar="COLUMN,…", help="columns that describe an item")
    option("--user-attributes", type=_names, default=[], metavar="COLUMN,…", help="columns that describe a user")
    option("--delimiter", help="of CSV files; default: a comma, a tab in .tsv")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(arguments: list[str]) -> None:
    """Read, validate, write, and say what became of every row."""
    asked, home = parse(arguments), Settings().home

    from cluster.reports import ReportClock
    from data.ingestion import TabularSource, ingest
    from data.summary import print_ingested, report_ingested
    from data.validation import EventRules

    clock = ReportClock("ingest_events")
    columns = dict(pair.partition("=")[::2] for pair in asked.columns)
    rules = EventRules(datetime.now(UTC), columns, asked.time_unit, asked.event_type)
    tables, texts = (asked.events, asked.items, asked.users), (asked.item_title, asked.delimiter)
    source = TabularSource(*tables, *texts, asked.item_attributes, asked.user_attributes)
    ingested = ingest(home, asked.dataset, source, rules)
    print_ingested(ingested)
    report_ingested(clock, ingested, vars(asked)).write(home)


if __name__ == "__main__":
    run_job(main)
