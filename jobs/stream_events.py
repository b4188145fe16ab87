"""Follow a stream of events into the online store: Kafka or Redis Streams, one JSON object per message."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.stream_events", description=__doc__)
    option = parser.add_argument
    option("--dataset", required=True, help="data set whose online store is kept up to date")
    option("--from", dest="stream", required=True, metavar="ADDRESS", help="kafka://… or redis://…")
    option("--columns", nargs="+", default=[], metavar="NAME=YOURS", help="e.g. user_id=uid item_id=sku event_time=ts")
    option("--time-unit", choices=["s", "ms", "us"], help="of times that are numbers since 1970 UTC")
    option("--event-type", default="interaction", help="of events that have no field event_type")
    option("--expectations", type=Path, help="TOML file with rules besides those of the contract")
    option("--history-length", type=int, default=50, help="of the features that are served, as in build_features")
    option("--until-empty", action="store_true", help="end when no message is left; else at Ctrl-C or SIGTERM")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Follow, and say at the end what became of the messages."""
    asked, settings = parse(arguments), Settings()

    from datetime import UTC, datetime

    from cluster.reports import ReportClock
    from cluster.signals import stopping_on_signals
    from data.expectations import read_expectations
    from data.features import views
    from data.online.store import open_online_store, require_same_features
    from data.online.stream_quarantine import StreamQuarantine
    from data.online.streaming import PROTOCOL, Follower
    from data.quality.validation import EventRules
    from data.sources.stream import open_stream

    clock = ReportClock("stream_events")
    columns = dict(pair.partition("=")[::2] for pair in asked.columns)
    source = open_stream(asked.stream, EventRules(datetime.now(UTC), columns, asked.time_unit, asked.event_type))
    declared = views(asked.history_length)
    store = open_online_store(settings, asked.dataset, declared)
    require_same_features(store, asked.dataset, declared)
    quarantine = StreamQuarantine(settings.home / "quarantine" / asked.dataset)
    expectations = read_expectations(asked.expectations).events
    with stopping_on_signals() as stop:
        follower = Follower(source, store.append_events, quarantine, expectations, stop=stop)
        print(f"following {source.name} into the online store of {asked.dataset}; Ctrl-C ends", flush=True)
        progress = follower.run(until_empty=asked.until_empty)
    print(f"{source.name}: {progress.line() if progress.messages else 'nothing new, no events to handle'}")
    config = {**vars(asked), "stream": source.name, "expectations": str(asked.expectations or "")}
    version, figures = store.published_version() or "", progress.figures()
    clock.finish(config=config, protocol=PROTOCOL, data_version=version, figures=figures).write(settings.home)


if __name__ == "__main__":
    run_job(main)
