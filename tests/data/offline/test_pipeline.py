"""A build by buckets gives, bit for bit, what whole tables give; on Ray Data, in this process, and when it goes on."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.aggregations import Count, days
from data.dataset import Dataset
from data.offline import building, feature_build
from data.offline.examples import EXAMPLE_COLUMNS, examples_of
from data.offline.pipeline import build_examples, ensure_examples, examples_folder
from data.offline.store import read_examples, read_feature_manifest
from data.parallel import in_process
from data.views import ITEM, USER, FeatureView


@pytest.fixture
def events(make_events: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """600 events of 25 users with many ties in time, a tenth of them ingested late; a third are one user's."""
    chance = random.Random(3)
    rows = [
        (
            chance.choice(["giant", *(f"u{chance.randrange(25)}/é" for _ in range(2))]),
            chance.choice(["x", "unseen2", *"abcdefgh"]),
            chance.random(),
            chance.randrange(90) * 3600,
        )
        for _ in range(600)
    ]
    delays = [timedelta(seconds=chance.choice([0] * 9 + [40_000])) for _ in rows]
    table = make_events(rows)
    return table.with_columns(pl.col("ingest_time") + pl.Series(delays, dtype=pl.Duration("us")))


@pytest.fixture
def dataset(events: pl.DataFrame, write_small: Callable[..., Any], tmp_path: Path) -> Dataset:
    return write_small(tmp_path, events)


def expected(dataset: Dataset, history_length: int = 5) -> pl.DataFrame:
    return examples_of(dataset.events(), dataset.items(), dataset.users(), history_length)


@pytest.mark.usefixtures("ray_session")
def test_on_ray_equal_to_whole_tables(dataset: Dataset, tmp_path: Path) -> None:
    folder = build_examples(dataset, tmp_path / "out" / "examples", history_length=5)
    built = read_examples(folder)
    assert built.columns == EXAMPLE_COLUMNS
    assert_frame_equal(built, expected(dataset), check_exact=True)
    assert dict(built["split"].value_counts().iter_rows()) == {"train": 548, "validation": 26, "test": 26}
    assert built.filter(item_id="x")["item_attributes"].to_list() == [["kind=a"]] * built.filter(item_id="x").height
    manifest = read_feature_manifest(folder)
    assert (manifest.examples, manifest.history_length) == (600, 5)
    assert manifest.data_version == dataset.manifest.data_version
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"date={date}" for date in manifest.partitions),
        "items.parquet",
        "manifest.json",
        "users.parquet",
    ]


def test_a_bucket_with_too_many_events_is_done_in_pieces(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_build, "KEYS_AT_ONCE", 37)
    monkeypatch.setattr(feature_build, "EVENTS_AT_ONCE", 101)
    folder = build_examples(dataset, tmp_path / "out" / "examples", history_length=5, run=in_process)
    assert any(file.stem.endswith("-004") for file in folder.glob("date=*/bucket-*.parquet"))
    assert_frame_equal(read_examples(folder), expected(dataset), check_exact=True)


def test_a_build_goes_on_where_another_one_stopped(dataset: Dataset, tmp_path: Path) -> None:
    whole = build_examples(dataset, tmp_path / "whole" / "examples", 5, run=in_process)
    target = tmp_path / "stopped" / "examples"
    done: list[str] = []

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == 2:
                raise KeyboardInterrupt
            done.append(f"{function} {task}")
            yield function(task)

    attempts = 0
    while not target.exists():
        attempts += 1
        with suppress(KeyboardInterrupt):
            build_examples(dataset, target, 5, run=run)
        if not target.exists():
            with pytest.raises(TowerlineError, match="holds no examples"):
                read_examples(target)
    assert attempts == 4
    assert len(done) == 9
    assert contents(target) == contents(whole)
    assert list(target.parent.iterdir()) == [target]


def test_after_a_restart_of_the_machine_only_what_was_on_the_disk_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash may leave anything in the files that were not synced."""
    whole = build_examples(dataset, tmp_path / "whole" / "examples", 5, run=in_process)
    target = tmp_path / "stopped" / "examples"
    done: list[int] = []

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for task in tasks:
            if len(done) == 7:
                raise KeyboardInterrupt
            done.append(task)
            yield function(task)

    with suppress(KeyboardInterrupt):
        build_examples(dataset, target, 5, run=run)
    slices = list(target.parent.rglob("*.arrow"))
    assert len(slices) == 5
    for file in slices:
        file.write_bytes(b"")
    monkeypatch.setattr(building, "machine_start", lambda: "after the crash")
    done.clear()
    build_examples(dataset, target, 5, run=lambda *work: (done.append(1) or each for each in in_process(*work)))
    assert len(done) == 5 + 2
    assert contents(target) == contents(whole)


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_all_that_was_known_counts_into_item_features(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [(user, item, 5.0, second) for user in "ab" for second, item in enumerate(["p", "q", "r"])]
    dataset = write_small(tmp_path, make_events([*rows, ("c", "q", 1.0, 9), ("c", "p", 1.0, 10)]))
    examples = read_examples(build_examples(dataset, tmp_path / "examples", history_length=2, run=in_process))
    assert examples["history_items"].list.len().max() == 2
    counts = examples.filter(user_id="c").select("item_id", "item_event_count", "item_share")
    assert counts.rows() == [("q", 2, pytest.approx(1 / 3)), ("p", 2, pytest.approx(2 / 7))]


def test_views_of_ones_own(dataset: Dataset, tmp_path: Path) -> None:
    """Of users alone: there is nothing to bring from other buckets. Of items alone: nothing of users."""
    for entity in (USER, ITEM):
        view = FeatureView("mine", entity, {"n": Count(days(1))}, description="", owner="me")
        folder = build_examples(dataset, tmp_path / entity.name / "x", declared=[view], run=in_process)
        direct = examples_of(dataset.events(), dataset.items(), dataset.users(), declared=[view])
        assert_frame_equal(read_examples(folder), direct, check_exact=True)
        assert read_feature_manifest(folder).definitions == [view.definition()]
        assert list(read_feature_manifest(folder).fingerprints) == ["mine"]


def test_built_once_per_version_and_definition(dataset: Dataset, tmp_path: Path) -> None:
    folder = examples_folder(tmp_path, dataset, 5)
    assert build_examples(dataset, folder, 5, run=in_process) == folder
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ensure_examples(tmp_path, dataset, 5) == folder
    assert build_examples(dataset, folder, 5, run=in_process) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps
    assert examples_folder(tmp_path, dataset, 6).parent != folder.parent


def test_too_few_users_is_refused_and_nothing_is_left(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = write_small(tmp_path, make_events([("a", "x", 1.0, 0), ("b", "x", 1.0, 1)]))
    with pytest.raises(TowerlineError, match="at least 2 users with 3 or more events each, this data set has 0"):
        build_examples(dataset, tmp_path / "features" / "examples")
    assert not (tmp_path / "features").exists()


def test_a_data_set_that_lost_rows_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    file = dataset.bucket_file(USER, 0)
    pl.read_parquet(file)[:-1].write_parquet(file)
    with pytest.raises(TowerlineError, match=r"has 600 events by its manifest, 599 were read from .*; ingest it again"):
        build_examples(dataset, tmp_path / "out" / "examples", run=in_process)
