"""Joining features to a table of examples, bucket by bucket, gives what one join of whole tables gives."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data import feature_join
from data.aggregations import Count, LastN, Latest, days
from data.dataset import Dataset
from data.feature_join import join_features
from data.features import ALL_ACTIVITY, NEVER
from data.parallel import Run, in_process, on_ray
from data.point_in_time import features_of
from data.views import ITEM, USER, FeatureView

START = datetime(2024, 1, 1, tzinfo=UTC)
OF_USERS = FeatureView(
    "users",
    USER,
    {"last": LastN("item_id", 3), "newest": Latest("value")},
    description="",
    owner="me",
    ttl=timedelta(30),
)
OF_ITEMS = FeatureView("items", ITEM, {"n": Count(days(7))}, description="", owner="me")


@pytest.fixture
def dataset(make_events: Callable[..., pl.DataFrame], write_small: Callable[..., Any], tmp_path: Path) -> Dataset:
    """Late events of ten users; a third of them are one user's."""
    chance = random.Random(5)
    rows = [
        (f"u{chance.choice([0, 0, *range(10)])}", f"i{chance.randrange(6)}", chance.random(), chance.randrange(9**6))
        for _ in range(400)
    ]
    late = pl.Series([timedelta(hours=chance.choice([0, 0, 30])) for _ in rows], dtype=pl.Duration("us"))
    small: Dataset = write_small(tmp_path, make_events(rows).with_columns(pl.col("ingest_time") + late))
    return small


@pytest.fixture
def examples(tmp_path: Path) -> list[Path]:
    """Two files of several row groups; users and items that were never seen among them."""
    chance = random.Random(6)
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for number, file in enumerate(files):
        rows = pl.DataFrame(
            {
                "example": range(number * 500, number * 500 + 500),
                "user_id": [f"u{chance.randrange(12)}" for _ in range(500)],
                "item_id": [f"i{chance.randrange(8)}" for _ in range(500)],
                "event_time": [START + timedelta(seconds=chance.randrange(9**6)) for _ in range(500)],
            }
        )
        rows.write_parquet(file, row_group_size=200)
    return files


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("run", [in_process, on_ray])
def test_equal_to_one_join(
    run: Run, dataset: Dataset, examples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_join, "EXAMPLES_AT_ONCE", 50)
    folder = join_features(dataset, [OF_USERS, OF_ITEMS], examples, tmp_path / "joined", run)
    keys = pl.read_parquet(examples).with_columns(source_row=pl.lit(NEVER, dtype=pl.Int64))
    expected = features_of([OF_ITEMS], dataset.events(), features_of([OF_USERS], dataset.events(), keys))
    joined = pl.read_parquet(folder / "*.parquet").sort("example")
    assert_frame_equal(joined, expected.drop("source_row"))
    assert sorted(path.suffix for path in folder.iterdir()) == [".parquet"] * len(list(folder.iterdir()))
    assert not list(tmp_path.glob(".*"))


def test_source_rows_decide_ties(dataset: Dataset, tmp_path: Path) -> None:
    events = dataset.events()
    events.select("user_id", "event_time", "source_row").write_parquet(tmp_path / "events.parquet")
    folder = join_features(dataset, [OF_USERS], [tmp_path / "events.parquet"], tmp_path / "joined", in_process)
    joined = pl.read_parquet(folder / "*.parquet").sort("event_time", "source_row")
    expected = features_of([OF_USERS], events, events.select("user_id", "event_time", "source_row"))
    assert_frame_equal(joined, expected)


def test_refused_before_anything_is_written(dataset: Dataset, examples: list[Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(TowerlineError, match="is there already"):
        join_features(dataset, [OF_USERS], examples, taken, in_process)
    with pytest.raises(TowerlineError, match="views of everything cannot be joined by bucket"):
        join_features(dataset, [ALL_ACTIVITY], examples, tmp_path / "out", in_process)
    pl.DataFrame({"item_id": ["x"]}).write_parquet(tmp_path / "narrow.parquet")
    with pytest.raises(TowerlineError, match=r"narrow.parquet has no column 'event_time', which examples need"):
        join_features(dataset, [OF_USERS], [tmp_path / "narrow.parquet"], tmp_path / "out", in_process)
    assert not (tmp_path / "out").exists()
