"""Whatever is killed, whenever: the next run ends with the same bytes as one that nobody disturbed."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.events import EventStream, write_events

pytestmark = pytest.mark.cluster

STREAM = EventStream(events=400_000, seed=7, late_share=0.05, giant_share=0.2)
INGEST = "jobs.ingest_events"
BUILD = "jobs.build_features"
LOG = "log.txt"
MANIFESTS = {"manifest.json", "validation.json", "validation.html"}
"""They say when they were written."""
Job = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events in Parquet; some late, a fifth of them one user's."""
    folder = tmp_path_factory.mktemp("source")
    write_events(STREAM, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which both jobs ran once."""
    home = tmp_path_factory.mktemp("undisturbed")
    for arguments in commands(source):
        with running(arguments, home) as job:
            assert job.wait(900) == 0, (home / LOG).read_text()
    return home


def commands(source: Path) -> list[list[str]]:
    return [
        [INGEST, "--dataset", "shop", "--events", str(source)],
        [BUILD, "--dataset", "shop", "--history-length", "3"],
    ]


@contextmanager
def running(arguments: list[str], home: Path) -> Iterator[Job]:
    """A job with a Ray of its own. At the end it is killed; its workers then go by themselves, or are killed later."""
    temporary = Path(tempfile.mkdtemp(prefix="tlf", dir="/tmp"))
    environment = {
        **os.environ,
        "TOWERLINE_HOME": str(home),
        "TMPDIR": str(temporary),
        "TOWERLINE_NUM_CPUS": "2",
    }
    with (home / LOG).open("w") as log:
        job = subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stdout=log, stderr=log)
    started = [psutil.Process(job.pid)]
    try:
        yield job
    finally:
        if job.poll() is None:
            started += started[0].children(recursive=True)
            job.kill()
        job.wait()
        for process in psutil.wait_procs(started[1:], timeout=5)[1]:
            process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def tables(home: Path) -> dict[str, bytes]:
    """Every file of the current data set and of its examples, by its place there."""
    (examples,) = (home / "features" / "shop").glob("*/*/manifest.json")
    folders = ((home / "datasets" / "shop" / "current").resolve(), examples.parent)
    files = [(folder, file) for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert not [file for _, file in files if file.name.startswith(".")]
    return {str(file.relative_to(folder)): file.read_bytes() for folder, file in files if file.name not in MANIFESTS}


def begun(home: Path, arguments: list[str]) -> bool:
    """Whether a job has begun to write."""
    pattern = "datasets/shop/.part-*" if arguments[0] == INGEST else "features/shop/*/.building-*"
    return bool(list(home.glob(pattern)))


def wait_for(home: Path, arguments: list[str], job: Job) -> None:
    until = time.monotonic() + 600
    while not begun(home, arguments) and job.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_of(job: Job) -> list[psutil.Process]:
    """Ray's workers of a job that are at work."""
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith(("ray::MapBatches", "ray::IDLE")):
            found.append(process)
    return found


def test_a_job_killed_at_random_moments_ends_with_the_same_bytes(
    source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(1)
    for arguments in commands(source):
        for _ in range(3):
            with running(arguments, tmp_path) as job:
                wait_for(tmp_path, arguments, job)
                time.sleep(chance.uniform(0, 4))
        with running(arguments, tmp_path) as job:
            assert job.wait(900) == 0, (tmp_path / LOG).read_text()
    assert tables(tmp_path) == tables(undisturbed)
    assert not list(tmp_path.glob("features/shop/*/.*"))


def test_workers_killed_at_random_moments_are_replaced(source: Path, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    killed = 0
    for arguments in commands(source):
        with running(arguments, tmp_path) as job:
            wait_for(tmp_path, arguments, job)
            for _ in range(3):
                time.sleep(chance.uniform(0.1, 1.5))
                workers = workers_of(job) if job.poll() is None else []
                if workers:
                    chance.choice(workers).kill()
                    killed += 1
            assert job.wait(900) == 0, (tmp_path / LOG).read_text()
    assert killed >= 2
    assert tables(tmp_path) == tables(undisturbed)
