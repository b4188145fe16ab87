import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.buckets import bucket_of
from data.dataset import Dataset, list_datasets, open_dataset
from data.views import EVERYTHING, ITEM, USER

ROWS = [("anna", "x", 1.0, 0), ("anna", "y", 2.0, 1), ("Борис/ '\"", "x", 3.0, 1), ("anna", "x", 1.0, 0)]


def test_what_was_written_is_read(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    events = make_events(ROWS)
    written = write_small(tmp_path, events.reverse())
    opened = open_dataset(tmp_path, "small")
    assert opened == written
    assert_frame_equal(opened.events().drop("split"), events.sort("event_time", "source_row"))
    assert opened.events()["split"].to_list() == ["train", "validation", "test", "train"]
    assert opened.items()["attributes"].to_list() == [["kind=a"], []]
    assert opened.users().rows() == [("anna", ["age=30"])]
    assert (opened.manifest.events, opened.manifest.users, opened.manifest.items) == (4, 2, 3)
    assert opened.manifest.last_event_time.isoformat() == "2024-01-01T00:00:01+00:00"


def test_unknown_name_says_which_there_are(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TowerlineError, match=r"'nope' does not exist.*there are: none.*jobs.ingest_events"):
        open_dataset(tmp_path, "nope")
    write_small(tmp_path, make_events(ROWS))
    with pytest.raises(TowerlineError, match="there are: small"):
        open_dataset(tmp_path, "nope")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 65])
def test_a_name_that_cannot_be_a_folder_is_refused(
    name: str, make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TowerlineError, match="cannot be a folder name"):
        write_small(tmp_path, make_events(ROWS), name)
    assert not list(tmp_path.iterdir())


def test_no_events_is_refused(make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match="gave no events; nothing was written"):
        write_small(tmp_path, make_events([]))
    assert not list(tmp_path.iterdir())


def test_the_version_is_of_the_content(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    first = write_small(tmp_path, make_events(ROWS))
    again = write_small(tmp_path, make_events(ROWS), "other")
    assert again.manifest.data_version == first.manifest.data_version
    for other in [("annA", "x", 1.0, 0)], [("anna", "x", 1.5, 0)], [("c", "x", 1.0, 9), ROWS[0]]:
        changed = write_small(tmp_path, make_events([*other, *ROWS[1:]]))
        assert changed.manifest.data_version != first.manifest.data_version


def test_buckets_hold_the_same_events_sorted_by_their_entity(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [(f"u{n % 17}", f"i{n % 13}", float(n), n * 7 % 20) for n in range(200)]
    dataset = write_small(tmp_path, make_events(rows))
    assert dataset.manifest.buckets == 4
    for entity in (USER, ITEM):
        parts = [dataset.bucket(entity, bucket) for bucket in range(4)]
        assert_frame_equal(pl.concat(parts).sort("event_time", "source_row"), dataset.events())
        for bucket, part in enumerate(parts):
            assert part.equals(part.sort(entity.key, "event_time", "source_row"))
            assert {bucket_of(entity_id, 4) for entity_id in part[entity.key]} <= {bucket}
    assert dataset.bucket(USER, 0, ["value"]).columns == ["value"]
    wanted = dataset.events().filter(pl.col("item_id").is_in(["i3", "i4"]))
    assert_frame_equal(dataset.entity_events(ITEM, ["i3", "i4", "?"]), wanted)
    assert dataset.entity_events(USER, []).is_empty()
    with pytest.raises(TowerlineError, match="not by 'everything'"):
        dataset.bucket(EVERYTHING, 0)


def test_a_version_of_another_form_says_so(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = write_small(tmp_path, make_events(ROWS))
    (dataset.path / "manifest.json").write_text('{"name": "small"}')
    with pytest.raises(TowerlineError, match=r"'small': .* was written in another form .*; ingest it again"):
        open_dataset(tmp_path, "small")


def test_a_version_that_lost_a_file_says_so(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = write_small(tmp_path, make_events(ROWS))
    dataset.bucket_file(USER, 0).unlink()
    with pytest.raises(TowerlineError, match=r"is not whole .*bucket-00000.parquet.*; ingest it again"):
        dataset.events()


def test_a_reader_keeps_its_version_while_a_newer_one_is_written(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    reader = write_small(tmp_path, make_events(ROWS))
    newer = write_small(tmp_path, make_events(ROWS[:3]))
    assert reader.events().height == 4
    assert open_dataset(tmp_path, "small").events().height == 3
    write_small(tmp_path, make_events(ROWS[:2]))
    assert not reader.path.exists()
    assert newer.events().height == 3


def test_a_failure_keeps_the_old_version_and_leaves_nothing(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    old = write_small(tmp_path, make_events(ROWS))
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="user_id"):
        write_small(tmp_path, make_events(ROWS).with_columns(pl.lit(None, dtype=pl.String).alias("user_id")))
    assert _files(tmp_path) == before
    assert open_dataset(tmp_path, "small") == old


def test_what_a_killed_writer_left_is_removed_by_the_next(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    part = tmp_path / "datasets" / "small" / ".part-dead"
    part.mkdir(parents=True)
    (part / "events.parquet").write_text("half")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    write_small(tmp_path, make_events(ROWS))
    assert not part.exists()
    assert list_datasets(tmp_path) == ["small"]


def test_two_writers_at_once_leave_one_whole_version(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    tables = [make_events(ROWS), make_events(ROWS[:2])]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: write_small(tmp_path, tables[number % 2]), range(20)))
    dataset = open_dataset(tmp_path, "small")
    assert dataset.events().height == dataset.manifest.events in {2, 4}
    assert not list(dataset.path.parent.glob(".part-*"))


def test_a_folder_that_is_gone_is_not_listed(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset: Dataset = write_small(tmp_path, make_events(ROWS))
    shutil.rmtree(dataset.path)
    with pytest.raises(TowerlineError, match=re.escape("'small' does not exist")):
        open_dataset(tmp_path, "small")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))
