"""What is particular to SQLite: one file, several processes, and what a kill leaves."""

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.features import views
from data.online.stores import sqlite_publication
from data.online.stores.sqlite import SqliteStore
from data.online.stores.sqlite_tables import OF_VERSION
from data.views import EVERYTHING, ITEM, USER
from tests.data.conftest import events_of

NOW = datetime(2024, 1, 2, tzinfo=UTC)
DatasetOf = Callable[[pl.DataFrame], Dataset]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online" / "small.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, views())
    yield store
    store.close()


def counted(store: SqliteStore) -> int:
    return store.read(EVERYTHING, [""], NOW)["counted_events"].item()


def test_nothing_is_made_before_the_first_use(store: SqliteStore, path: Path) -> None:
    assert not path.parent.exists()
    assert store.published_version() is None
    assert path.exists()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at as one" * 40)
    with pytest.raises(TowerlineError, match=r"x\.db is no online store .*delete it and publish again"):
        SqliteStore(path, views()).published_version()


def test_a_folder_that_cannot_be_made_is_an_error_a_person_can_act_on(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("a file")
    with pytest.raises(TowerlineError, match="a part of the path is a file; set TOWERLINE_HOME to a folder"):
        SqliteStore(tmp_path / "online" / "home" / "small.db", views()).published_version()


def test_a_failed_append_changes_nothing(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append_events(events_of([("anna", "x", 1.0, 1)]))
    with monkeypatch.context() as patched:
        patched.setattr("data.online.stores.sqlite_version.VersionTables.put_applied", None)
        with pytest.raises(TypeError):
            store.append_events(events_of([("anna", "y", 1.0, 2)]))
    assert (counted(store), store.appended_events().height) == (1, 1)
    assert store.append_events(events_of([("anna", "y", 1.0, 2)])) == 1
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["x", "y"]]


def test_a_full_disk_changes_nothing_and_is_said(store: SqliteStore, path: Path, dataset_of: DatasetOf) -> None:
    store.publish(dataset_of(events_of([("anna", "x", 1.0, 1)])))
    connection = store._connections.get()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    many = events_of([(f"u{row}", "y", 1.0, row) for row in range(500)])
    for write in (lambda: store.append_events(many), lambda: store.publish(dataset_of(many))):
        with pytest.raises(TowerlineError, match=rf"in {path}: no space left on the disk; free some"):
            write()
        assert store.read(USER, ["anna", "u1"], NOW)["user_event_count"].to_list() == [1, 0]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert store.publish(dataset_of(many)) == 500
    assert store.read(USER, ["anna", "u1"], NOW)["user_event_count"].to_list() == [0, 1]


def test_a_switch_does_not_disturb_who_reads(store: SqliteStore, path: Path, dataset_of: DatasetOf) -> None:
    """Another thread reads all the while: the old version or the new one, nothing else."""
    store.publish(dataset_of(events_of([("anna", "x", 1.0, 1)])))
    stop, found = threading.Event(), set()

    def read() -> None:
        reader = SqliteStore(path, views())
        while not stop.is_set():
            found.add(tuple(reader.read(USER, ["anna", "eva"], NOW)["user_event_count"].to_list()))
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2, 8):
        rows = [("anna", "x", float(number), row) for row in range(number)]
        store.publish(dataset_of(events_of([*rows, ("eva", "x", 1.0, 1)])))
    stop.set()
    thread.join(300)
    assert found <= {(1, 0), *((number, 1) for number in range(2, 8))}
    assert tables(path) == {f"{name}_7" for name in OF_VERSION}


def tables(path: Path) -> set[str]:
    """The tables of versions."""
    with sqlite3.connect(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {name for name in names if name.rpartition("_")[2].isdigit()}


def test_a_version_that_another_one_overtook_is_dropped(
    store: SqliteStore, path: Path, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_publication.SqlitePublication, "_apply_part", None)
        with pytest.raises(TypeError):
            store.publish(dataset_of(events_of([("anna", "x", 1.0, 1)])))
    assert store.read(USER, ["anna"], NOW)["known"].to_list() == [False]
    assert store.publish(dataset_of(events_of([("anna", "y", 1.0, 1)]))) == 1
    assert store.read(USER, ["anna"], NOW)["history_items"].to_list() == [["y"]]
    assert all(name.endswith("_2") for name in tables(path))


def append_until_killed(path: Path, events: pl.DataFrame, confirmed: "multiprocessing.Queue[int]") -> None:
    store = SqliteStore(path, views())
    for number, row in enumerate(events.iter_slices(1)):
        store.append_events(row)
        confirmed.put(number)


def test_what_was_confirmed_survives_a_kill(path: Path, store: SqliteStore) -> None:
    context = multiprocessing.get_context("spawn")
    confirmed = context.Queue()
    events = events_of([("u", f"i{second}", 1.0, second) for second in range(2000)])
    writer = context.Process(target=append_until_killed, args=(path, events, confirmed))
    writer.start()
    last = max(confirmed.get(timeout=300) for _ in range(20))
    writer.kill()
    writer.join(300)
    assert writer.exitcode == -signal.SIGKILL
    stored = store.appended_events()["item_id"].to_list()
    assert stored[: last + 1] == [f"i{second}" for second in range(last + 1)]
    assert store.read(USER, ["u"], NOW)["user_event_count"].to_list() == [len(stored)]
    assert counted(store) == len(stored) < 2000


PUBLISH = """
import sys
from pathlib import Path
from data.dataset import open_dataset
from data.features import views
from data.online.stores import sqlite_version
from data.online.stores.sqlite import SqliteStore
from data.online.stores.sqlite_tables import OF_VERSION
original = sqlite_version.VersionTables.note
sqlite_version.VersionTables.note = lambda *a: (print("bucket", flush=True), original(*a))[1]
print(SqliteStore(Path(sys.argv[1]), views()).publish(open_dataset(Path(sys.argv[2]), "small")))
"""


@pytest.mark.parametrize("buckets", [1, 4, 8])
def test_a_killed_publication_is_taken_up_with_the_same_result(
    path: Path, tmp_path: Path, store: SqliteStore, dataset_of: DatasetOf, buckets: int
) -> None:
    events = events_of([(f"u{row % 17}", f"i{row % 5}", 1.0, row) for row in range(300)])
    dataset = dataset_of(events)
    command = [sys.executable, "-c", PUBLISH, str(path), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(buckets):
            assert process.stdout.readline() == "bucket\n"
        process.kill()
    assert store.read(USER, ["u1"], NOW)["known"].to_list() == [False]
    assert store.publish(dataset) == 300
    undisturbed = SqliteStore(tmp_path / "other.db", views())
    undisturbed.publish(dataset)
    for entity, ids in ((USER, [f"u{row}" for row in range(17)]), (ITEM, [f"i{row}" for row in range(5)])):
        assert store.values(entity, ids) == undisturbed.values(entity, ids)
    assert counted(store) == counted(undisturbed) == 300
    undisturbed.close()


def append_until(path: Path, stop: threading.Event, done: "multiprocessing.Queue[tuple[int, float]]") -> None:
    """Append and read what was appended, again and again; how often, and how long the slowest append took."""
    store, number, longest = SqliteStore(path, views()), 0, 0.0
    while not stop.is_set():
        began = time.monotonic()
        store.append_events(events_of([(f"busy{number}", f"i{number % 70}", 1.0, number)]))
        longest = max(longest, time.monotonic() - began)
        assert store.read(USER, [f"busy{number}"], NOW)["user_event_count"].to_list() == [1]
        number += 1
        if number == 1:
            done.put((1, longest))
    done.put((number, longest))


@pytest.mark.cluster
def test_appending_beside_publications(path: Path, store: SqliteStore, dataset_of: DatasetOf) -> None:
    """The whole with a long log, what a version adds, and another whole that drops the one before."""
    rows = [(f"u{row * 7919 % 5_000}", f"i{row * row % 997}", 1.0, row) for row in range(100_000)]
    events = events_of(rows)
    store.append_events(events[:20_000])
    context = multiprocessing.get_context("spawn")
    stop, done = context.Event(), context.Queue()
    writer = context.Process(target=append_until, args=(path, stop, done))
    writer.start()
    done.get(timeout=300)
    for shown in (events[10_000:90_000], events[10_000:], events[10_000:].with_columns(value=pl.lit(2.0))):
        store.publish(dataset_of(shown))
    stop.set()
    appended, longest = done.get(timeout=300)
    writer.join(300)
    assert writer.exitcode == 0
    assert longest < 30
    assert store.appended_events().height == 10_000 + appended
    assert counted(store) == 100_000 + appended
    assert store.append_events(events[:100]) == 0


@pytest.mark.parametrize("is_brought", [True, False])
def test_an_append_while_additions_are_prepared(
    path: Path, store: SqliteStore, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch, is_brought: bool
) -> None:
    old = events_of([("anna", "x", 1.0, 1), ("bob", "y", 1.0, 2)])
    store.publish(dataset_of(old))
    added = events_of([("anna", "new", 1.0, 3), ("bob", "z", 1.0, 4)])
    meanwhile = added[:1] if is_brought else events_of([("anna", "meanwhile", 1.0, 9)])
    other, write = SqliteStore(path, views()), sqlite_publication.prepared

    def prepared(*arguments: Any) -> Any:
        ready = write(*arguments)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(other.append_events, meanwhile).result() == 1
            pool.submit(other.close).result()
        return ready

    monkeypatch.setattr(sqlite_publication, "prepared", prepared)
    assert store.publish(dataset_of(pl.concat([old, added]))) == (4 if is_brought else 5)
    expected = ["x", "new"] if is_brought else ["x", "new", "meanwhile"]
    assert store.read(USER, ["anna", "bob"], NOW)["history_items"].to_list() == [expected, ["y", "z"]]
    assert counted(store) == (4 if is_brought else 5)
    assert store.appended_events().height == (0 if is_brought else 1)
    assert store.read(ITEM, ["new", "meanwhile"], NOW)["item_event_count"].to_list() == [1, int(not is_brought)]


def test_what_a_killed_publication_left_behind_its_switch_is_tidied_up(
    path: Path, store: SqliteStore, dataset_of: DatasetOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events_of([("anna", "x", 1.0, 1), ("anna", "y", 1.0, 2)])
    store.append_events(events)
    dataset = dataset_of(events[:1])
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_publication.SqlitePublication, "_tidy", None)
        with pytest.raises(TypeError):
            store.publish(dataset)
    assert counted(store) == 2
    assert store.append_events(events) == 0
    assert any(name.startswith("dropped_") for name in tables(path))
    assert store.publish(dataset) == 2
    assert store.appended_events()["item_id"].to_list() == ["y"]
    assert tables(path) == {f"{name}_2" for name in OF_VERSION}
