"""The generated shop on disk: events in Parquet, ingested once by the job that ingests everything else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.events import START, EventStream, write_events
from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from data.dataset import Dataset, list_datasets, open_dataset
from data.features import TIME
from data.schema import EVENT_TIME, USER_ID

UNKNOWN_SHARE = 0.02
"""Share of examples of users without events."""
EXAMPLES_PER_GROUP = 100_000


def ingested(home: Path, stream: EventStream, name: str) -> Dataset:
    """The data set of a stream of events, made if it is not there."""
    if name not in list_datasets(home):
        started = time.monotonic()
        folder = home / "events" / name
        write_events(stream, folder)
        command = [sys.executable, "-m", "jobs.ingest_events", "--dataset", name, "--events", str(folder)]
        environment = {**os.environ, "TOWERLINE_HOME": str(home)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TowerlineError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        print(
            f"{name}: {stream.events:,} events generated and ingested in {time.monotonic() - started:.0f} s", flush=True
        )
    return open_dataset(home, name)


def examples_of(stream: EventStream, file: Path) -> Path:
    """One example to ten events: users by the same law, some of them unknown, at moments spread over the stream."""
    count = stream.events // 10
    if not file.exists():
        random = np.random.default_rng(stream.seed)
        users = random.integers(0, round(stream.users * (1 + UNKNOWN_SHARE)), count)
        moments = round(START.timestamp() * 1e6) + random.integers(0, stream.days * 86_400_000_000, count)
        frame = pl.DataFrame({"example": np.arange(count), USER_ID: users, EVENT_TIME: moments})
        frame = frame.with_columns(pl.format("u{}", USER_ID).alias(USER_ID), pl.col(EVENT_TIME).cast(TIME))
        frame.write_parquet(file, row_group_size=EXAMPLES_PER_GROUP)
    return file
