"""Recommend to all users of a data set at once, by the graph that the endpoint answers with; leaves Parquet files."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings

PROTOCOL = "the champion's answer for each user as of one moment, by the stages of the endpoint, all in process"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.recommend_batch", description=__doc__)
    option = parser.add_argument
    option("--dataset", required=True, help="a data set that has a champion")
    option("--at", type=moment, help="as of when, ISO 8601, UTC unless it names a zone; default: now")
    option("--users", type=Path, help="file with their ids: Parquet with user_id, or one a line; default: all")
    option("--count", type=int, default=10, help="items for each; default: 10")
    option("--config", type=Path, help="TOML file with the arguments of serve.app.build, as the endpoint's")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Recommend, and say where it is."""
    asked, settings = parse(arguments), Settings()

    from contextlib import ExitStack

    from cluster.reports import ReportClock
    from data.parallel import on_ray_when_needed
    from serve.batch_run import read_users, recommend_all
    from serve.config import read_config

    clock = ReportClock("recommend_batch")
    config = read_config(asked.dataset, asked.config)
    users = None if asked.users is None else read_users(asked.users)
    with ExitStack() as session:
        run = on_ray_when_needed(settings, session)
        found = recommend_all(settings, config, users=users, at=asked.at, count=asked.count, run=run)
    made = found.provenance
    settled, version, figures = made.model_dump(mode="json"), made.data_version, found.figures()
    clock.finish(config=settled, protocol=PROTOCOL, data_version=version, figures=figures).write(settings.home)
    print(
        f"{found.rows:,} recommendations for {made.users:,} users as of {made.at:%Y-%m-%dT%H:%M:%SZ} in {found.folder}"
    )


def moment(text: str) -> datetime:
    """A moment in UTC from ISO 8601."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


if __name__ == "__main__":
    run_job(main)
