"""The pipeline on Ray Data gives, bit for bit, what whole tables give."""

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.pipeline import (
    EXAMPLE_COLUMNS,
    build_examples,
    ensure_examples,
    examples_folder,
    examples_of,
    read_examples,
    read_feature_manifest,
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def events(make_events: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """600 events of 25 users with many ties in time, a tenth of them ingested late."""
    chance = random.Random(3)
    rows = [
        (
            f"u{chance.randrange(25)}/é",
            chance.choice(["x", "unseen2", *"abcdefgh"]),
            chance.random(),
            chance.randrange(90),
        )
        for _ in range(600)
    ]
    delays = [timedelta(seconds=chance.choice([0] * 9 + [40])) for _ in rows]
    table = make_events(rows)
    return table.with_columns(pl.col("ingest_time") + pl.Series(delays, dtype=pl.Duration("us")))


def test_equal_to_whole_tables(events: pl.DataFrame, write_small: Callable[..., Any], tmp_path: Path) -> None:
    dataset = write_small(tmp_path, events)
    folder = build_examples(dataset, tmp_path / "out" / "examples", history_length=5, buckets=7)
    assert len(list(folder.glob("*.parquet"))) == 7
    built = read_examples(folder)
    assert built.columns == EXAMPLE_COLUMNS
    assert_frame_equal(built, examples_of(dataset.events(), dataset.items(), dataset.users(), 5), check_exact=True)
    assert dict(built["split"].value_counts().iter_rows()) == {"train": 550, "validation": 25, "test": 25}
    assert built.filter(item_id="x")["item_attributes"].to_list() == [["kind=a"]] * built.filter(item_id="x").height
    manifest = read_feature_manifest(folder)
    assert (manifest.examples, manifest.history_length) == (600, 5)
    assert manifest.data_version == dataset.manifest.data_version


def test_held_out_events_do_not_count_into_item_features(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [(user, item, 5.0, second) for user in "ab" for second, item in enumerate(["p", "q", "r"])]
    dataset = write_small(tmp_path, make_events([*rows, ("c", "q", 1.0, 9), ("c", "p", 1.0, 10)]))
    build_examples(dataset, tmp_path / "examples", history_length=1)
    examples = read_examples(build_examples(dataset, tmp_path / "examples", history_length=2))
    assert examples["history_items"].list.len().max() == 2
    counts = examples.filter(user_id="c").select("item_id", "item_event_count", "item_share")
    assert counts.rows() == [("q", 0, 0.0), ("p", 2, pytest.approx(2 / 3))]


def test_built_once_per_version_and_definition(
    events: pl.DataFrame, write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = write_small(tmp_path, events)
    folder = ensure_examples(tmp_path, dataset, 5)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert ensure_examples(tmp_path, dataset, 5) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    assert examples_folder(tmp_path, dataset, 6) != folder
    assert not list(folder.parent.glob(".*"))


def test_too_few_users_is_refused_and_nothing_is_left(
    make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = write_small(tmp_path, make_events([("a", "x", 1.0, 0), ("b", "x", 1.0, 1)]))
    with pytest.raises(TowerlineError, match="at least 2 users with 3 or more events each, this data set has 0"):
        build_examples(dataset, tmp_path / "features" / "examples")
    assert not (tmp_path / "features").exists()


def test_no_examples_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"holds no examples; make them with `python -m jobs.build_features"):
        read_examples(tmp_path)
