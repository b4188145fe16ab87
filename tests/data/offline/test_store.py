"""Snapshots are read by date and column, kept by version, and complete or not there."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.offline.building import building
from data.offline.pipeline import build_examples, examples_folder
from data.offline.store import list_snapshots, read_examples, read_feature_manifest
from data.parallel import in_process

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = 86_400


Write = Callable[..., Dataset]


@pytest.fixture
def write(write_small: Callable[..., Any], make_events: Callable[..., Any], tmp_path: Path) -> Write:
    """Events of five users, spread over so many days."""

    def write_events(days: int, rows: int = 200) -> Dataset:
        events = make_events([(f"u{n % 5}", f"i{n % 7}", float(n % 3), n * days * DAY // rows) for n in range(rows)])
        dataset: Dataset = write_small(tmp_path, events)
        return dataset

    return write_events


def build(home: Path, dataset: Dataset, history_length: int = 3) -> Path:
    return build_examples(dataset, examples_folder(home, dataset, history_length), history_length, run=in_process)


@pytest.mark.parametrize(("days", "dates"), [(4, 4), (31, 31), (100, 4)])
def test_partitioned_by_day_or_by_month(days: int, dates: int, write: Write, tmp_path: Path) -> None:
    folder = build(tmp_path, write(days))
    manifest = read_feature_manifest(folder)
    assert len(manifest.partitions) == len(list(folder.glob("date=*"))) == dates
    assert sum(manifest.partitions.values()) == manifest.examples == 200
    form = "%Y-%m-%d" if days <= 31 else "%Y-%m-01"
    for date, rows in manifest.partitions.items():
        part = pl.read_parquet(folder / f"date={date}" / "*.parquet")
        assert part.height == rows
        assert set(part["event_time"].dt.strftime(form)) == {date}


@pytest.mark.parametrize("days", [20, 200])
@pytest.mark.parametrize(("since", "until"), [(0, None), (None, 7), (3, 9), (3.4, 3.6), (7, 7), (-9, -5), (500, None)])
def test_a_range_of_time_is_a_part_of_the_whole(
    days: int,
    since: float | None,
    until: float | None,
    write: Write,
    tmp_path: Path,
) -> None:
    folder = build(tmp_path, write(days))
    whole = read_examples(folder)
    assert whole["sequence"].to_list() == list(range(200))
    first, last = (None if day is None else START + timedelta(days=day * days / 20) for day in (since, until))
    chosen = whole
    chosen = chosen if first is None else chosen.filter(pl.col("event_time") >= first)
    chosen = chosen if last is None else chosen.filter(pl.col("event_time") < last)
    assert_frame_equal(read_examples(folder, since=first, until=last), chosen)
    for columns in (["item_attributes", "sequence"], ["history_items", "user_id"], ["user_attributes"], []):
        assert_frame_equal(read_examples(folder, columns, since=first, until=last), chosen.select(columns))


def test_only_what_is_asked_for_is_read(write: Write, tmp_path: Path) -> None:
    folder = build(tmp_path, write(20))
    for file in folder.glob("date=2024-01-0[1-9]/*.parquet"):
        file.write_bytes(b"not Parquet")
    assert read_examples(folder, ["value"], since=START + timedelta(days=9)).height == 110
    with pytest.raises(pl.exceptions.ComputeError):
        read_examples(folder)


def test_an_unknown_column_is_named(write: Write, tmp_path: Path) -> None:
    folder = build(tmp_path, write(20))
    with pytest.raises(TowerlineError, match=r"have no column 'mood' \(there are: sequence, event_time,"):
        read_examples(folder, ["value", "mood"])


def test_other_definitions_stand_beside_and_of_each_the_last_two_versions_of_the_data(
    write: Write, tmp_path: Path
) -> None:
    folders = []
    for rows in (200, 210, 220):
        dataset = write(20, rows)
        folders.append([build(tmp_path, dataset, 3), *([build(tmp_path, dataset, 4)] if rows == 200 else [])])
    assert not folders[0][0].exists()
    kept = [folders[0][1], folders[1][0], folders[2][0]]
    snapshots = list_snapshots(tmp_path, "small")
    assert [snapshot.path for snapshot in snapshots] == kept
    assert [snapshot.manifest.examples for snapshot in snapshots] == [200, 210, 220]
    assert [read_examples(folder, ["history_items"])["history_items"].list.len().max() for folder in kept] == [4, 3, 3]
    assert {snapshot.path.parent for snapshot in snapshots} == {folders[0][1].parent, folders[2][0].parent}
    assert list_snapshots(tmp_path, "other") == []


def test_what_was_begun_for_older_data_goes_and_what_is_being_built_stays(write: Write, tmp_path: Path) -> None:
    dataset = write(20)
    definition = examples_folder(tmp_path, dataset, 3).parent
    (definition / ".building-dead" / "date=2024-01-01").mkdir(parents=True)
    with building(definition / "alive") as work:
        assert work is not None
        build(tmp_path, dataset)
        names = sorted(path.name for path in definition.iterdir())
    assert names == [".building-alive", examples_folder(tmp_path, dataset, 3).name]


def test_two_at_a_time_do_the_work_once(write: Write, tmp_path: Path) -> None:
    """The second waits, and finds it done."""
    dataset = write(20)
    with ThreadPoolExecutor() as threads:
        (folder,) = set(threads.map(lambda _: build(tmp_path, dataset), range(3)))
    assert read_examples(folder).height == 200
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("manifest", [None, json.dumps({"dataset": "small"})])
def test_what_is_no_snapshot_says_so(manifest: str | None, tmp_path: Path) -> None:
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    words = "is no manifest of examples" if manifest else "holds no examples; make them with `python -m jobs.build"
    with pytest.raises(TowerlineError, match=words):
        read_examples(tmp_path)
