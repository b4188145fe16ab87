"""Several processes write to one store."""

import multiprocessing
import threading
from datetime import UTC, datetime

import polars as pl

from cluster.settings import Settings
from data.online.store import OnlineStore, open_online_store
from data.views import EVERYTHING, ITEM, USER
from tests.data.conftest import events_of

NOW = datetime(2024, 1, 2, tzinfo=UTC)
SECONDS = 15


def append_one_by_one(settings: Settings, events: pl.DataFrame, all_ready: threading.Barrier) -> None:
    store = open_online_store(settings, "small")
    all_ready.wait(120)
    for row in events.iter_slices(1):
        store.append_events(row)


def test_no_event_of_several_writers_is_lost(store: OnlineStore, settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    all_ready = context.Barrier(3)
    shares = {
        writer: events_of([(writer, "x", 1.0, second) for second in range(SECONDS)]) for writer in ("u0", "u1", "here")
    }
    writers = [
        context.Process(target=append_one_by_one, args=(settings, shares[name], all_ready)) for name in ("u0", "u1")
    ]
    for writer in writers:
        writer.start()
    append_one_by_one(settings, shares["here"], all_ready)
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert store.appended_events()["source_row"].n_unique() == 3 * SECONDS
    assert store.read(USER, list(shares), NOW)["user_event_count"].to_list() == [SECONDS] * 3
    assert store.read(ITEM, ["x"], NOW)["item_event_count"].to_list() == [3 * SECONDS]
    assert store.read(EVERYTHING, [""], NOW)["counted_events"].item() == 3 * SECONDS
