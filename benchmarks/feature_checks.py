"""What the sides computed is the same, and is right."""

import random
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from benchmarks.views import NEWEST_TTL, newest_view
from data.dataset import Dataset
from data.schema import EVENT_TIME, INGEST_TIME, SOURCE_ROW, USER_ID
from data.views import USER

USERS_COMPARED = 200
EXAMPLES_SEARCHED = 200


def require_equal_features(ours: Path, polars: Path) -> None:
    """Compare all features of some users. Raises AssertionError."""
    theirs = pl.scan_parquet(sorted(polars.glob("*.parquet")))
    users = theirs.select(pl.col(USER_ID).unique()).collect().to_series().sort()
    chosen = users.sample(min(USERS_COMPARED, users.len()), seed=0)
    expected = theirs.filter(pl.col(USER_ID).is_in(chosen.implode())).collect().sort(SOURCE_ROW)
    rows = pl.scan_parquet(sorted(ours.glob("date=*/*.parquet")), hive_partitioning=False)
    found = rows.filter(pl.col(USER_ID).is_in(chosen.implode())).collect().sort(SOURCE_ROW)
    columns = [name for name in expected.columns if name in found.columns]
    assert len(columns) == len(expected.columns)
    assert_frame_equal(found.select(columns), _plain(expected.select(columns)), check_dtypes=False, rel_tol=1e-5)


def require_equal_joins(dataset: Dataset, outputs: Mapping[str, Path]) -> None:
    """Compare all rows of all sides, and some of them with a search through all events. Raises AssertionError."""
    ours = pl.read_parquet(outputs["ours"] / "*.parquet").sort("example")
    for side in ("polars", "duckdb"):
        assert_frame_equal(ours, pl.read_parquet(outputs[side]).sort("example"), check_dtypes=False)
    chosen = random.Random(0).sample(range(ours.height), min(EXAMPLES_SEARCHED, ours.height))
    asked = ours[sorted(chosen)]
    events = dataset.entity_events(USER, asked[USER_ID]).sort(EVENT_TIME, SOURCE_ROW)
    view = newest_view()
    for row in asked.iter_rows(named=True):
        at = row[EVENT_TIME]
        known = events.filter(
            (pl.col(USER_ID) == row[USER_ID]) & (pl.col(EVENT_TIME) <= at) & (pl.col(INGEST_TIME) <= at)
        )
        newest = known.tail(1).filter(pl.lit(at) - pl.col(EVENT_TIME) <= NEWEST_TTL).with_columns(**view.columns)
        for name in view.features:
            assert row[name] == (newest.item(0, view.column_of(name)) if newest.height else None), (row, name)


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    """Codes as the texts that they stand for."""
    return rows.with_columns(
        pl.col(pl.Categorical).cast(pl.String), pl.col(pl.List(pl.Categorical)).cast(pl.List(pl.String))
    )
