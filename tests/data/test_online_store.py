import multiprocessing
import pickle
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data import features
from data.online_store import FIRST_APPENDED_ROW, OnlineStore

ROWS = [("anna", "x", 1.0, 5), ("anna", "y", 2.0, 1), ("Борис/ '\"", "x", 3.5, 1), ("anna", "x", 4.0, 1)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OnlineStore]:
    store = OnlineStore(tmp_path / "online" / "small.db")
    yield store
    store.close()


@pytest.fixture
def publish(
    store: OnlineStore, make_events: Callable[..., Any], write_small: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    return lambda rows: store.publish(write_small(tmp_path, make_events(rows)))


def test_what_was_published_is_read_in_the_total_order(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    assert publish(ROWS) == 4
    expected = make_events(ROWS).sort("event_time", "source_row")
    assert_frame_equal(store.user_events(["anna"]), expected.filter(user_id="anna"))
    assert_frame_equal(store.user_events(["anna", "Борис/ '\"", "nobody", "anna"]), expected)
    assert store.user_attributes(["nobody", "anna"]).rows() == [("anna", ["age=30"])]


def test_unknown_users_have_nothing(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    for _ in range(2):
        assert store.user_events(["nobody"]).equals(make_events([]))
        assert store.user_events([]).is_empty()
        assert store.user_attributes(["nobody"]).is_empty()
        publish(ROWS)


def test_totals_of_items_follow_appended_events(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    publish(ROWS)
    before = store.item_aggregates()
    assert before.sort("item_id").select("item_id", "item_event_count", "item_sum_value").rows() == [
        ("x", 3, 8.5),
        ("y", 1, 2.0),
    ]
    assert store.item_aggregates() is before
    assert store.append_events(make_events([("new", "x", 1.5, 3), ("new", "z", 1.0, 9)])) == 2
    after = {row[0]: row[1:] for row in store.item_aggregates().iter_rows()}
    start = make_events(ROWS)["event_time"].min() - timedelta(seconds=1)
    assert after["x"] == (4, 10.0, start + timedelta(seconds=5))
    assert after["z"] == (1, 1.0, start + timedelta(seconds=9))


def test_another_process_is_noticed(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    publish(ROWS)
    assert store.item_aggregates().height == 2
    other = pickle.loads(pickle.dumps(store))
    other.append_events(make_events([("new", "z", 1.0, 9)]))
    other.close()
    assert store.item_aggregates().height == 3


def test_appending_twice_adds_nothing(store: OnlineStore, make_events: Callable[..., Any]) -> None:
    events = make_events([*ROWS, ROWS[0]])
    assert store.append_events(events.drop("source_row")) == 5
    assert store.append_events(events) == 0
    assert store.user_events(["anna"]).height == 4
    assert store.item_aggregates()["item_event_count"].sum() == 5


def test_appended_events_come_after_published_ones_of_the_same_time(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    publish(ROWS)
    store.append_events(make_events([("anna", "first", 1.0, 1), ("anna", "second", 1.0, 1)]))
    events = store.user_events(["anna"])
    assert events["item_id"].to_list() == ["y", "x", "first", "second", "x"]
    assert events["source_row"].to_list()[2:4] == [FIRST_APPENDED_ROW, FIRST_APPENDED_ROW + 1]


def test_publishing_again_keeps_what_was_appended(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    publish(ROWS)
    appended = make_events([("anna", "fresh", 1.0, 8), ("anna", "known by now", 1.0, 9)])
    store.append_events(appended)
    brings = ("anna", "known by now", 1.0, 9)
    assert publish([ROWS[1], brings]) == 3
    assert store.user_events(["anna"])["item_id"].to_list() == ["y", "fresh", "known by now"]
    assert store.user_events(["Борис/ '\""]).is_empty()
    assert dict(store.item_aggregates().select("item_id", "item_event_count").iter_rows()) == {
        "y": 1,
        "fresh": 1,
        "known by now": 1,
    }
    version = store.published_version()
    assert publish([ROWS[1], brings]) == 3
    assert store.published_version() == version


def test_a_failed_publication_changes_nothing(
    store: OnlineStore,
    publish: Callable[..., Any],
    make_events: Callable[..., Any],
    write_small: Callable[..., Any],
    tmp_path: Path,
) -> None:
    publish(ROWS)
    dataset = write_small(tmp_path, make_events(ROWS[:1]))
    (dataset.path / "users.parquet").write_bytes(b"gone")
    with pytest.raises(pl.exceptions.PolarsError):
        store.publish(dataset)
    events = dataset.events().drop("split").with_columns(user_id=pl.lit(None, dtype=pl.String))
    with pytest.raises(sqlite3.IntegrityError):
        store.append_events(pl.concat([make_events([("c", "x", 1.0, 1)]), events]))
    assert store.user_events(["anna", "c"]).height == 3
    assert store.item_aggregates()["item_event_count"].sum() == 4


def append_many(path: Path, events: pl.DataFrame, started: threading.Event) -> None:
    store = OnlineStore(path)
    started.wait()
    for row in events.iter_slices(1):
        store.append_events(row)


def test_several_processes_write_and_none_is_lost(
    tmp_path: Path, make_events: Callable[..., Any], store: OnlineStore
) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    shares = [make_events([(f"u{writer}", "x", 1.0, second) for second in range(40)]) for writer in range(2)]
    path = tmp_path / "online" / "small.db"
    writers = [context.Process(target=append_many, args=(path, share, started)) for share in shares]
    for writer in writers:
        writer.start()
    started.set()
    store.append_events(make_events([("here", "x", 1.0, second) for second in range(40)]))
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert store.user_events(["u0", "u1", "here"])["source_row"].n_unique() == 120
    assert store.item_aggregates()["item_event_count"].to_list() == [120]


def append_until_killed(path: Path, events: pl.DataFrame, confirmed: "multiprocessing.Queue[int]") -> None:
    store = OnlineStore(path)
    for number, row in enumerate(events.iter_slices(1)):
        store.append_events(row)
        confirmed.put(number)


def test_what_was_confirmed_survives_a_kill(
    tmp_path: Path, make_events: Callable[..., Any], store: OnlineStore
) -> None:
    context = multiprocessing.get_context("spawn")
    confirmed = context.Queue()
    events = make_events([("u", f"i{second}", 1.0, second) for second in range(5000)])
    path = tmp_path / "online" / "small.db"
    writer = context.Process(target=append_until_killed, args=(path, events, confirmed))
    writer.start()
    last = max(confirmed.get(timeout=60) for _ in range(20))
    writer.kill()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    stored = store.user_events(["u"])["item_id"].to_list()
    assert stored[: last + 1] == [f"i{second}" for second in range(last + 1)]
    assert store.item_aggregates()["item_event_count"].sum() == len(stored) < 5000


def test_online_equals_offline(
    store: OnlineStore, publish: Callable[..., Any], make_events: Callable[..., Any]
) -> None:
    """The features of a user and of items, as a training example at that moment would have held them."""
    published = [(user, item, value, 3 * second) for second, (user, item, value, _) in enumerate(ROWS * 3)]
    publish(published)
    appended = [("anna", "z", 2.5, 40), ("anna", "x", 1.5, 40)]
    store.append_events(make_events(appended))
    example = ("anna", "x", 0.0, 41)
    offline_events = features.with_sequence(make_events([*published, *appended, example]))
    offline = features.user_windows(offline_events, 4).tail(1)
    moment = offline["event_time"].item()
    online = features.user_features_at(store.user_events(["anna"]), ["anna"], moment, 4)
    assert_frame_equal(online, offline.select(online.columns))

    timeline, counted = features.item_aggregates(offline_events), features.counted_timeline(offline_events)
    keys = offline.select("item_id", "sequence", "event_time")
    expected = features.item_features_at(timeline, counted, keys).select(features.ITEM_FEATURE_COLUMNS)
    totals = store.item_aggregates()
    state = totals.filter(item_id="x").with_columns(
        pl.lit(totals["item_event_count"].sum()).alias(features.COUNTED_EVENTS), offline["event_time"]
    )
    assert_frame_equal(features.finish_item_features(state).select(features.ITEM_FEATURE_COLUMNS), expected)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at as one" * 40)
    with pytest.raises(TowerlineError, match=r"x\.db is no online store .*delete it and publish again"):
        OnlineStore(path).item_aggregates()
