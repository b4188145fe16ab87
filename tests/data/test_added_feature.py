"""The feature that the README adds: the declaration alone is enough, for batch and online."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import data.features
from cluster.provenance import ROOT
from cluster.settings import Settings
from data.checks.leakage import check_leakage
from data.dataset import Dataset
from data.features import NEVER, views
from data.online.store import open_online_store
from data.temporal.point_in_time import features_at
from data.views import USER, FeatureView

NAMES = ["user_delights_30d", "user_seconds_since_delight"]


@pytest.fixture(scope="module")
def view() -> FeatureView:
    """What the README tells people to write into `data/features.py`."""
    (declaration,) = re.findall(r"```python\n(\w+ = FeatureView.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(declaration.splitlines()) <= 10
    names = dict(vars(data.features))
    exec(declaration, names)
    declared = names["DELIGHT"]
    assert isinstance(declared, FeatureView)
    return declared


def test_it_does_not_leak(view: FeatureView) -> None:
    check_leakage(view).require_none()


def test_it_is_the_same_in_batch_and_online(
    view: FeatureView,
    tmp_path: Path,
    make_events: Callable[..., pl.DataFrame],
    write_small: Callable[..., Dataset],
) -> None:
    rows = [("anna", "x", 5.0, 0), ("anna", "y", 3.0, 60), ("anna", "z", 4.0, 120), ("ben", "x", 1.0, 130)]
    dataset = write_small(tmp_path, make_events(rows))
    store = open_online_store(Settings(home=tmp_path), dataset.name, (*views(), view))
    store.publish(dataset)
    start: datetime = dataset.manifest.first_event_time
    for at in (start + timedelta(minutes=3), start + timedelta(days=40)):
        online = store.read(USER, ["anna", "ben", "nobody"], at, NAMES).select(NAMES)
        keys = pl.DataFrame({"user_id": ["anna", "ben", "nobody"]}).with_columns(
            pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("event_time"), pl.lit(NEVER).alias("source_row")
        )
        assert online.equals(features_at(view, dataset.events(), keys).select(NAMES))
    assert online.row(0) == (0, (timedelta(days=40) - timedelta(minutes=2)).total_seconds())
