"""Joining features to a table of examples, bucket by bucket, gives what one join of whole tables gives."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.aggregations import Count, LastN, Latest, days
from data.dataset import Dataset
from data.features import ALL_ACTIVITY, NEVER
from data.offline import feature_join
from data.offline.feature_join import join_features
from data.offline.slices import each_slice
from data.parallel import Run, in_process, on_ray
from data.temporal.point_in_time import features_of
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


def example_frame(**columns: Any) -> pl.DataFrame:
    times = [START + timedelta(days=9)] * 2
    return pl.DataFrame({"user_id": ["u0", "u1"], "item_id": ["i0", "i1"], "event_time": times} | columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"event_time": [1, 2]}, "column 'event_time' is Int64, expected a timestamp with a time zone; convert it"),
        ({"event_time": [datetime(2024, 1, 1)] * 2}, "column 'event_time' is Datetime.*, expected a timestamp with"),
        ({"event_time": ["2024-01-01", "2024"]}, "column 'event_time' is String, expected a timestamp"),
        ({"event_time": [START, None]}, "1 examples have no event_time; drop them"),
        ({"user_id": [1, 2]}, "column 'user_id' is Int64, expected strings; cast it"),
        ({"user_id": [None, "u1"]}, "1 examples have no user_id; drop them"),
        ({"item_id": [None, "i1"]}, "1 examples have no item_id; drop them"),
        ({"source_row": ["1", "2"]}, "column 'source_row' is String, expected integers; leave it out"),
        ({"n": [1, 2]}, "column 'n' is called like a feature of the views; rename it"),
    ],
)
def test_examples_that_cannot_be_joined_are_named(
    dataset: Dataset, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    example_frame(**columns).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(TowerlineError, match=f"e.parquet: {message}"):
        join_features(dataset, [OF_USERS, OF_ITEMS], [tmp_path / "e.parquet"], tmp_path / "out", in_process)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "o"))) == []


def test_files_that_are_not_as_the_others_are_named(dataset: Dataset, tmp_path: Path) -> None:
    example_frame().write_parquet(tmp_path / "one.parquet")
    example_frame(extra=[1, 2]).write_parquet(tmp_path / "two.parquet")
    (tmp_path / "three.parquet").write_text("text")
    for other, message in (
        ("two", "two.parquet: column 'extra' is not as in .*one.parquet"),
        ("three", "three.parquet is no Parquet file"),
        ("four", "four.parquet is no Parquet file"),
    ):
        files = [tmp_path / "one.parquet", tmp_path / f"{other}.parquet"]
        with pytest.raises(TowerlineError, match=message):
            join_features(dataset, [OF_USERS], files, tmp_path / "out", in_process)
    with pytest.raises(TowerlineError, match="there are no files of examples to join"):
        join_features(dataset, [OF_USERS], [], tmp_path / "out", in_process)
    with pytest.raises(TowerlineError, match="two views have a feature 'n'"):
        join_features(dataset, [OF_ITEMS, OF_ITEMS], [tmp_path / "one.parquet"], tmp_path / "out", in_process)


def test_columns_that_the_join_does_not_need_may_be_anything(dataset: Dataset, tmp_path: Path) -> None:
    """A null item, times of another zone and unit, texts from a dictionary, columns in another order."""
    one = example_frame(item_id=[None, "i1"], kind=pl.Series(["a", "b"], dtype=pl.Categorical)).with_columns(
        pl.col("event_time").dt.convert_time_zone("Europe/Berlin").dt.cast_time_unit("ns")
    )
    one.write_parquet(tmp_path / "one.parquet")
    two = one.select(pl.all().reverse()).select(sorted(one.columns))
    two.write_parquet(tmp_path / "two.parquet")
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    joined = pl.read_parquet(join_features(dataset, [OF_USERS], files, tmp_path / "out", in_process) / "*.parquet")
    keys = example_frame(source_row=pl.Series([NEVER] * 2, dtype=pl.Int64))
    expected = pl.concat([features_of([OF_USERS], dataset.events(), keys)] * 2)
    order = ["user_id", "last"]
    assert_frame_equal(joined.select(order).sort("user_id"), expected.select(order).sort("user_id"))
    assert joined.schema["event_time"] == one.schema["event_time"]


@pytest.mark.parametrize("row_groups", [0, 1])
def test_no_examples_give_an_empty_table(dataset: Dataset, tmp_path: Path, row_groups: int) -> None:
    table = example_frame().clear().to_arrow()
    with pq.ParquetWriter(tmp_path / "e.parquet", table.schema) as writer:
        for _ in range(row_groups):
            writer.write_table(table)
    folder = join_features(dataset, [OF_USERS, OF_ITEMS], [tmp_path / "e.parquet"], tmp_path / "out", in_process)
    joined = pl.read_parquet(folder / "*.parquet")
    assert joined.schema == example_frame().schema | OF_USERS.schema() | OF_ITEMS.schema()
    assert joined.height == 0


def test_a_bucket_with_many_examples_is_joined_in_parts(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All examples are of one user, in one row group; no frame is larger than what is held at once."""
    monkeypatch.setattr(feature_join, "EXAMPLES_AT_ONCE", 50)
    sizes: list[int] = []

    def counting(views: Any, events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
        sizes.append(keys.height)
        return features_of(views, events, keys)

    def reading(*arguments: Any) -> Iterator[pl.DataFrame]:
        for frame in each_slice(*arguments):
            sizes.append(frame.height)
            yield frame

    monkeypatch.setattr(feature_join, "features_of", counting)
    monkeypatch.setattr(feature_join, "each_slice", reading)
    times = [START + timedelta(hours=hour) for hour in range(330)]
    pl.DataFrame({"user_id": ["u0"] * 330, "event_time": times}).write_parquet(tmp_path / "e.parquet")
    folder = join_features(dataset, [OF_USERS], [tmp_path / "e.parquet"], tmp_path / "out", in_process)
    assert max(sizes) == 50
    assert pl.read_parquet(folder / "*.parquet").height == 330
