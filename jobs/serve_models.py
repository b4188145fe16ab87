"""Serve the champion of a data set over HTTP until Ctrl-C, or write the file by which a cluster does."""

import argparse
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.job import run_job
from cluster.settings import Settings

if TYPE_CHECKING:
    from data.dataset import Dataset

DATASET = "movielens-100k"
WRITTEN = """\
published data set {dataset} to the online store, and wrote {path}
deploy it: serve deploy {path} --address http://HEAD:8265
"""
EXAMPLE = """\
serving data set {dataset} at {url} — documentation at {url}/docs — stop with Ctrl-C
try: curl -s {url}/v1/recommend -H 'Content-Type: application/json' -d '{{"user_id": "{user}", "count": 5}}'
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.serve_models", description=__doc__)
    parser.add_argument("--dataset", default=DATASET, help=f"a data set that has a champion; default: {DATASET}")
    parser.add_argument("--config", type=Path, help="TOML file with the arguments of serve.app.build")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="publish the data set, write serve.yaml for `serve deploy` or KubeRay to this path, and start nothing",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Start the endpoint, say where it is, and wait; or write the file."""
    asked, settings = parse(arguments), Settings()

    from cluster.session import connect
    from serve.config import read_config
    from serve.session import publish, require_servable, running

    config = read_config(asked.dataset, asked.config)
    servable = require_servable(settings, config, here=not asked.write)
    if asked.write:
        from serve.deploy_file import write_deploy_file

        publish(settings, servable)
        write_deploy_file(asked.write, settings, config)
        print(WRITTEN.format(dataset=asked.dataset, path=asked.write), end="")
        return
    user = some_user(servable.dataset)
    with connect(settings) as _, running(settings, config) as url:
        print(EXAMPLE.format(dataset=asked.dataset, url=url, user=user), flush=True)
        threading.Event().wait()


def some_user(dataset: "Dataset") -> str:
    """A user with events, for an example; reads one bucket."""
    from data.schema import USER_ID
    from data.views import USER

    buckets = (dataset.bucket(USER, bucket, [USER_ID]) for bucket in range(dataset.manifest.buckets))
    return str(next(bucket.item(0, USER_ID) for bucket in buckets if bucket.height))


if __name__ == "__main__":
    run_job(main)
