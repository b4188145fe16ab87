"""What feedback and streams appended becomes part of the data set, once and as it was known."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from data.events import FIRST_APPENDED_ROW
from data.features import NEVER, views
from data.ingest.ingestion import ingest_appended
from data.online.store import open_online_store
from data.quality.validation import EventRules
from data.temporal.point_in_time import features_of
from data.views import USER, views_of

HISTORIES = [["w", "x", "z", "y"], ["w", "x", "y"], ["x"]]


def test_appended_events_come_home(
    tmp_path: Path, make_events: Callable[..., pl.DataFrame], write_small: Callable[..., Dataset]
) -> None:
    rows = [(user, *seen) for user in ("anna", "ben") for seen in (("w", 4.0, 0), ("x", 5.0, 0), ("y", 3.0, 60))]
    dataset = write_small(tmp_path, make_events(rows))
    store = open_online_store(Settings(home=tmp_path), dataset.name)
    store.publish(dataset)
    late = make_events([("anna", "z", 4.0, 30), ("carl", "x", 2.0, 90)]).drop("ingest_time", "source_row")
    assert store.append_events(late) == 2
    before = store.read(USER, ["anna", "ben", "carl"], datetime.now(UTC))

    assert ingest_appended(tmp_path, dataset.name, store.appended_events(), EventRules(now=datetime.now(UTC))).is_new
    grown = open_dataset(tmp_path, dataset.name)
    assert grown.manifest.events == dataset.manifest.events + 2
    added = grown.events().filter(pl.col("event_id").is_in(late["event_id"].to_list()))
    assert added["source_row"].min() == FIRST_APPENDED_ROW
    assert added["ingest_time"].min() > added["event_time"].max()

    store.publish(grown)
    assert store.appended_events().is_empty()
    assert store.append_events(late) == 0
    at = datetime.now(UTC)
    now = store.read(USER, ["anna", "ben", "carl"], at)
    assert now["history_items"].to_list() == before["history_items"].to_list() == HISTORIES
    keys = pl.DataFrame({"user_id": ["anna", "ben", "carl"]}).with_columns(
        pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("event_time"), pl.lit(NEVER).alias("source_row")
    )
    offline = features_of(views_of(USER, views()), grown.events(), keys)
    assert now.select(offline.columns[3:]).equals(offline[:, 3:])


def test_nothing_appended_is_nothing_new(
    tmp_path: Path, make_events: Callable[..., pl.DataFrame], write_small: Callable[..., Dataset]
) -> None:
    dataset = write_small(tmp_path, make_events([(user, item, 1.0, 0) for user in "ab" for item in "xyz"]))
    store = open_online_store(Settings(home=tmp_path), dataset.name)
    store.publish(dataset)
    ingested = ingest_appended(tmp_path, dataset.name, store.appended_events(), EventRules(now=datetime.now(UTC)))
    assert not ingested.is_new
    assert ingested.dataset.manifest.data_version == dataset.manifest.data_version
