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
from data.offline.pipeline import examples_folder
from data.offline.store import read_examples
from tests.train.planted import HISTORY, plant


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


def test_list_shows_views_with_their_lineage_and_the_snapshots(tmp_path: Path) -> None:
    empty = run(tmp_path, "--list")
    assert empty.returncode == 0, empty.stderr
    assert "item_popularity: How often an item was chosen" in empty.stdout
    assert "from events: event_time, ingest_time, item_id, source_row" in empty.stdout
    (line,) = [line for line in empty.stdout.splitlines() if "item_mean_value_30d" in line]
    assert line.split() == ["item_mean_value_30d", "mean", "of", "value", "30", "d", "0.0", "value"]
    assert "no examples on disk; make them with" in empty.stdout
    planted = plant(tmp_path)
    listed = run(tmp_path, "--list", "--history-length", str(HISTORY))
    assert planted.dataset.manifest.data_version[:12] in listed.stdout
    assert "of today" in listed.stdout
    other = run(tmp_path, "--list", "--dataset", "planted", "--history-length", "7")
    assert "other user_activity" in other.stdout


def test_no_view_leaks(tmp_path: Path) -> None:
    checked = run(tmp_path, "--check-leakage")
    assert checked.returncode == 0, checked.stderr
    leaks = [line.split()[-1] for line in checked.stdout.splitlines() if "_" in line]
    assert leaks == ["none"] * 3


@pytest.mark.cluster
def test_a_full_disk_is_one_clear_line_and_the_build_goes_on_when_there_is_space(tmp_path: Path) -> None:
    """The data set fits on a small tmpfs, its examples do not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    fetch(MOVIELENS_100K)
    build = f"{sys.executable} -m jobs.build_features --dataset movielens-100k"
    script = f"""
        mount -t tmpfs -o size=40m tmpfs {disk} || exit 99
        {sys.executable} -m jobs.ingest_events --dataset movielens-100k >/dev/null || exit 98
        mount -o remount,size=$(($(du -sk {disk} | cut -f1) + 3000))k {disk} || exit 97
        {build}; echo "status $?"
        find {disk}/home/features -name manifest.json
        mount -o remount,size=200m {disk} || exit 96
        {build} | grep examples
    """
    done = subprocess.run(
        [shutil.which("unshare") or "unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "TOWERLINE_HOME": str(disk / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == ["status", "2", "examples", "100,000"], done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no space left on the disk" in line
    assert line.endswith("what is finished is kept, and the same command goes on from there")
    assert "Traceback" not in done.stderr
