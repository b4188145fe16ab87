"""The job as a person runs it, with a Ray session of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.assets import MOVIELENS_100K, fetch
from data.dataset import open_dataset
from data.pipeline import examples_folder, read_examples


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.build_features", *arguments]
    environment = {**os.environ, "TOWERLINE_HOME": str(home), "COLUMNS": "120"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def ingest(home: Path) -> None:
    command = [sys.executable, "-m", "jobs.ingest_events", "--dataset", "movielens-100k"]
    fetch(MOVIELENS_100K)
    subprocess.run(command, env={**os.environ, "TOWERLINE_HOME": str(home)}, capture_output=True, check=True)


def test_examples_are_built_once(tmp_path: Path) -> None:
    ingest(tmp_path)
    first = run(tmp_path, "--dataset", "movielens-100k", "--history-length", "10")
    assert first.returncode == 0, first.stderr
    folder = examples_folder(tmp_path, open_dataset(tmp_path, "movielens-100k"), 10)
    assert "examples         100,000" in first.stdout
    assert f"written to {folder}" in first.stdout
    examples = read_examples(folder)
    assert examples["sequence"].to_list() == list(range(100_000))
    assert examples["history_items"].list.len().max() == 10
    assert dict(examples["split"].value_counts().iter_rows()) == {"train": 98_114, "validation": 943, "test": 943}
    report = json.loads((tmp_path / "reports" / "build_features.json").read_text())
    assert report["figures"]["examples"] == 100_000
    again = run(tmp_path, "--dataset", "movielens-100k", "--history-length", "10")
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nope"], "data set 'nope' does not exist"),
        (["--dataset", "movielens-100k", "--history-length", "0"], "--history-length is 0, expected 1 or more"),
    ],
)
def test_refused_with_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    if "nope" not in arguments:
        ingest(tmp_path)
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "features").exists()


@pytest.mark.cluster
def test_a_full_disk_leaves_no_half_of_the_examples(tmp_path: Path) -> None:
    """The data set fits on a tmpfs of 6 MiB, its examples do not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    fetch(MOVIELENS_100K)
    script = f"""
        mount -t tmpfs -o size=6m tmpfs {disk} || exit 99
        {sys.executable} -m jobs.ingest_events --dataset movielens-100k >/dev/null || exit 98
        {sys.executable} -m jobs.build_features --dataset movielens-100k; echo "status $?"
        find {disk}/home/features -type f
    """
    done = subprocess.run(
        [shutil.which("unshare") or "unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "TOWERLINE_HOME": str(disk / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "status 2\n", done.stderr
    assert "error: no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
