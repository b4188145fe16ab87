"""Read events, items and users into a data set: your own, or MovieLens-100K, which comes along.

Events come from Parquet, CSV or JSON Lines (a file, a folder, a glob, at any address such as s3://…), from a database
(postgresql://…) or from a stream (kafka://…, redis://…). Times without a time zone are taken as UTC.
"""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.ingest_events", description=__doc__)
    option = parser.add_argument
    option("--dataset", required=True, help="name to give it; movielens-100k needs no files")
    option("--append", action="store_true", help="add to what is there; an event with a known id is not added again")
    option("--appended", action="store_true", help="add what feedback and streams brought to the online store")
    option("--events", metavar="ADDRESS", help="path, folder, glob or address: one event a row")
    option("--partitions", metavar="KEY=A..B", help="only these: date=2024-01-01..2024-01-31; none may be missing")
    option("--allow-missing-partitions", action="store_true", help="days may be missing between the first and the last")
    option("--table", help="of a database")
    option("--query", help="SELECT …, instead of a table")
    option("--order-by", metavar="COLUMN", help="of the table or query, to go on by if the database goes away")
    option("--items", help="file: one item a row")
    option("--users", help="file: one user a row")
    option("--columns", nargs="+", default=[], metavar="NAME=YOURS", help="e.g. user_id=uid item_id=sku event_time=ts")
    option("--time-unit", choices=["s", "ms", "us"], help="of times that are numbers since 1970 UTC")
    option("--event-type", default="interaction", help="of events that have no column event_type")
    option("--item-title", metavar="COLUMN", help="default: title, if there is one")
    option("--item-attributes", type=_names, default=[], metavar="COLUMN,…", help="columns that describe an item")
    option("--user-attributes", type=_names, default=[], metavar="COLUMN,…", help="columns that describe a user")
    option("--delimiter", help="of CSV files; default: a comma, a tab in .tsv")
    option("--expectations", type=Path, metavar="FILE.toml", help="what rows must keep besides the contract")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(arguments: list[str]) -> None:
    """Read, validate, write, and say what became of every row."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from data.ingest.request import IngestionRequest
    from data.summary import print_ingested, report_ingested

    clock, request = ReportClock("ingest_events"), IngestionRequest(**vars(asked))
    ingested = request.fulfil(settings)
    print_ingested(ingested)
    report_ingested(clock, ingested, request.shown()).write(settings.home)


if __name__ == "__main__":
    run_job(main)
