import gzip
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data import buckets
from data.dataset import Dataset, list_datasets, open_dataset, write_dataset
from data.events import FIRST_APPENDED_ROW, ROWS_PER_FILE
from data.ingest import parts as ingest_parts
from data.ingest.bucket_files import ItemMerger
from data.ingest.ingestion import TabularSource, ingest_files, ingest_source
from data.parallel import Run, on_ray
from data.quality.validation import EventRules
from data.sources import parquet
from data.sources.events import EventsSource
from data.sources.tabular import open_table
from data.views import ITEM, USER
from tests.data.ingesting import GOOD, HEADER, NOW, RULES, events_file, files_of, raw_events


def interrupted(after: int) -> Run:
    """Runs so many steps in this process, and is then interrupted."""
    steps = itertools.count(1)

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        results = [function(task) for task in tasks]
        if next(steps) == after:
            raise KeyboardInterrupt
        return iter(results)

    return run


def test_the_way_of_ingestion_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, many buckets, parts in another order: the same bytes; and the same as from tables in memory."""
    raw_events(53, 3000).write_parquet(tmp_path / "e.parquet", row_group_size=250)
    source = TabularSource(tmp_path / "e.parquet")
    whole = ingest_files(tmp_path, "whole", source, RULES).dataset
    assert (whole.manifest.events, whole.manifest.buckets, whole.manifest.users) == (3000, 4, 53)
    monkeypatch.setattr(parquet, "ROWS_PER_PART", 500)
    monkeypatch.setattr(ingest_parts, "ROWS_PER_PIECE", 100)

    def backwards(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        return iter([function(task) for task in reversed(tasks)])

    cut = ingest_files(tmp_path, "whole2", source, RULES, run=backwards).dataset
    assert cut.manifest.model_copy(update={"name": "whole"}) == whole.manifest
    assert {**files_of(cut), "manifest.json": b""} == {**files_of(whole), "manifest.json": b""}
    tables = {"items": whole.items(), "users": whole.users(), "quarantine": whole.quarantine()}
    direct = write_dataset(tmp_path, "direct", events=whole.events().drop("split"), source="memory", **tables)
    assert direct.manifest.data_version == whole.manifest.data_version
    monkeypatch.setattr(buckets, "EVENTS_PER_BUCKET", 100)
    many = ingest_files(tmp_path, "many", source, RULES).dataset
    assert many.manifest.buckets == 32
    assert_frame_equal(many.events(), whole.events())
    assert_frame_equal(
        pl.concat([many.bucket(ITEM, bucket) for bucket in range(32)]).sort("event_time", "source_row"), many.events()
    )


@pytest.mark.usefixtures("ray_session")
def test_on_ray_it_is_the_same(tmp_path: Path) -> None:
    raw_events(53, 3000).write_parquet(tmp_path / "e.parquet", row_group_size=1000)
    source = TabularSource(tmp_path / "e.parquet")
    here = ingest_files(tmp_path / "here", "e", source, RULES).dataset
    there = ingest_files(tmp_path / "there", "e", source, RULES, run=on_ray).dataset
    assert files_of(there) == files_of(here)
    (tmp_path / "bad.csv").write_text("who,what\n")
    with pytest.raises(TowerlineError, match="has no column 'when'"):
        ingest_files(tmp_path / "there", "e", TabularSource(tmp_path / "bad.csv"), RULES, run=on_ray)
    truncated = tmp_path / "e.csv.gz"
    truncated.write_bytes(gzip.compress((HEADER + GOOD * 5000).encode())[:-200])
    with pytest.raises(TowerlineError, match=r"e\.csv\.gz is truncated or corrupt"):
        ingest_files(tmp_path / "there", "e", TabularSource(truncated), RULES, run=on_ray)


class DiesAfterwards:
    """Does its work, and kills its worker before anybody hears of it: once for each task."""

    def __init__(self, function: Callable[[Any], Any], folder: Path) -> None:
        self.function, self.folder = function, folder

    def __call__(self, task: Any) -> Any:
        done = self.function(task)
        number = task.number if isinstance(task, ingest_parts.NumberedPart) else task
        try:
            (self.folder / f"{type(self.function).__name__}-{number}").touch(exist_ok=False)
        except FileExistsError:
            return done
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_workers_that_die_change_nothing(tmp_path: Path) -> None:
    """Every task of every step loses its worker once; the same bytes as when all goes well."""
    raw = raw_events(53, 3000).with_columns(event_id=pl.col("number") % 2990)
    raw.write_parquet(tmp_path / "e.parquet")
    source = TabularSource(tmp_path / "e.parquet")
    well = ingest_files(tmp_path / "well", "e", source, RULES).dataset
    (tmp_path / "deaths").mkdir()

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        return on_ray(DiesAfterwards(function, tmp_path / "deaths"), tasks)

    badly = ingest_files(tmp_path / "badly", "e", source, RULES, run=run).dataset
    assert files_of(badly) == files_of(well)
    assert badly.manifest.quarantined == 10
    assert len(list((tmp_path / "deaths").iterdir())) == 14


def test_reading_the_same_again_writes_nothing(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path))
    first = ingest_files(tmp_path, "mine", source, RULES)
    folders = sorted((tmp_path / "datasets" / "mine").iterdir())
    again = ingest_files(tmp_path, "mine", source, RULES)
    appended = ingest_files(tmp_path, "mine", source, RULES, append=True)
    assert (first.is_new, again.is_new, appended.is_new) == (True, False, False)
    assert (appended.already_there, appended.rows_read, sum(appended.quarantined.values())) == (6, 6, 0)
    assert again.dataset == appended.dataset == first.dataset
    assert sorted((tmp_path / "datasets" / "mine").iterdir()) == folders


def test_a_grown_file_keeps_the_ids_of_what_was_there(tmp_path: Path) -> None:
    first = set(
        ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES).dataset.events()["event_id"]
    )
    grown = TabularSource(events_file(tmp_path, HEADER + "new,x,1700000000,s\n" + GOOD))
    ids = set(ingest_files(tmp_path, "mine", grown, RULES).dataset.events()["event_id"])
    assert ids > first
    assert len(ids) == 7


@pytest.mark.parametrize("has_ids", [False, True])
def test_appending_piece_by_piece_is_reading_it_all(
    has_ids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days that overlap, into a data set whose number of buckets grows; an id that comes back with another user."""
    monkeypatch.setattr(buckets, "EVENTS_PER_BUCKET", 50)
    raw = raw_events(11, 900)
    if has_ids:
        raw = raw.with_columns(event_id=pl.col("number").cast(pl.String))
    raw.write_csv(tmp_path / "all.csv")
    whole = ingest_files(tmp_path, "whole", TabularSource(tmp_path / "all.csv"), RULES).dataset
    for day, (begin, end) in enumerate([(0, 150), (100, 500), (500, 900), (0, 900)]):
        part = raw[begin:end]
        if has_ids and day == 1:
            is_stolen = pl.col("number") == begin
            part = part.with_columns(pl.when(is_stolen).then(pl.lit("thief")).otherwise("who").alias("who"))
        part.write_csv(tmp_path / f"{day}.csv")
        ingested = ingest_files(tmp_path, "mine", TabularSource(tmp_path / f"{day}.csv"), RULES, append=day > 0)
        assert ingested.is_new == (day < 3)
        assert not ingested.quarantined
    assert ingested.already_there == 900
    mine = ingested.dataset
    assert mine.manifest.buckets == whole.manifest.buckets == 32
    columns = [column for column in whole.events().columns if column != "source_row"]
    assert_frame_equal(mine.events().select(columns), whole.events().select(columns))
    assert set(mine.events()["source_row"] // ROWS_PER_FILE) == {0, 1, 2}
    assert (mine.manifest.source, mine.manifest.next_file) == ("0.csv + 1.csv + 2.csv", 3)


def test_quarantine_is_kept_when_events_are_added(tmp_path: Path) -> None:
    """Also if all the events are known and only broken rows are new; nothing is there twice."""
    kept = []
    for name, bad in (
        ("a.csv", ",x,1700000000,s\n"),
        ("b.csv", "a b,,1700000000,s\n"),
        ("b.csv", "a b,,1700000000,s\n"),
    ):
        source = TabularSource(events_file(tmp_path, HEADER + GOOD + bad, name))
        ingested = ingest_files(tmp_path, "mine", source, RULES, append=bool(kept))
        kept.append((ingested.is_new, *ingested.dataset.quarantine().get_column("reason")))
    assert kept == [
        (True, "user_id is empty"),
        (True, "user_id is empty", "item_id is empty"),
        (False, "user_id is empty", "item_id is empty"),
    ]


def test_a_version_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path))
    dataset = ingest_files(tmp_path, "mine", source, RULES).dataset
    (dataset.path / "manifest.json").write_text("{}")
    with pytest.raises(TowerlineError, match="another form"):
        ingest_files(tmp_path, "mine", source, RULES, append=True)


def test_appending_updates_what_is_described(tmp_path: Path) -> None:
    def ingest(items: str, **options: bool) -> Dataset:
        (tmp_path / "items.csv").write_text("what,title\n" + items)
        source = TabularSource(events_file(tmp_path), tmp_path / "items.csv")
        return ingest_files(tmp_path, "mine", source, RULES, **options).dataset

    ingest("x,The X\ny,The Y\n")
    updated = ingest("x,The new X\nz,The Z\n", append=True)
    assert updated.items()["title"].to_list() == ["The new X", "The Y", "The Z"]
    without = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES, append=True).dataset
    assert without == updated


def test_two_who_add_at_once_do_not_lose_anything(tmp_path: Path) -> None:
    ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES)
    for name, number in (("1.parquet", 100), ("2.parquet", 200)):
        raw_events(11, 50, first=number).write_parquet(tmp_path / name)

    def overtaken(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        if isinstance(function, ItemMerger):
            ingest_files(tmp_path, "mine", TabularSource(tmp_path / "1.parquet"), RULES, append=True)
        return map(function, tasks)

    second = TabularSource(tmp_path / "2.parquet")
    with pytest.raises(TowerlineError, match=r"another job has written a version .*; run"):
        ingest_files(tmp_path, "mine", second, RULES, append=True, run=overtaken)
    assert open_dataset(tmp_path, "mine").manifest.events == 56
    assert ingest_files(tmp_path, "mine", second, RULES, append=True).dataset.manifest.events == 106


def test_there_must_be_something_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match="--append: there is no data set 'mine' to add to yet; leave out --append"):
        ingest_files(tmp_path / "home", "mine", TabularSource(events_file(tmp_path)), RULES, append=True)
    assert not (tmp_path / "home").exists()


def test_an_id_may_not_come_twice_even_with_another_user(tmp_path: Path) -> None:
    raw = raw_events(11, 60).with_columns(event_id=pl.col("number") % 50)
    raw.write_parquet(tmp_path / "e.parquet")
    ingested = ingest_files(tmp_path, "mine", TabularSource(tmp_path / "e.parquet"), RULES)
    assert ingested.dataset.events()["event_id"].n_unique() == ingested.dataset.manifest.events == 50
    assert ingested.quarantined == {("events", "duplicate event: event_id was there before"): 10}
    assert ingested.dataset.quarantine()["line"].to_list() == list(range(51, 61))


def test_fewer_events_than_rows_may_mean_fewer_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "EVENTS_PER_BUCKET", 20)
    raw = raw_events(11, 150)
    raw.write_csv(tmp_path / "once.csv")
    pl.concat([raw, raw]).write_csv(tmp_path / "twice.csv")
    once = ingest_files(tmp_path, "once", TabularSource(tmp_path / "once.csv"), RULES).dataset
    twice = ingest_files(tmp_path, "twice", TabularSource(tmp_path / "twice.csv"), RULES).dataset
    assert once.manifest.buckets == twice.manifest.buckets == 8
    assert once.manifest.data_version == twice.manifest.data_version
    assert len(list((twice.path / "by_user").iterdir())) == 8
    assert twice.manifest.quarantined == 150


def test_events_that_were_appended_online_keep_what_they_are(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path))
    before = ingest_files(tmp_path, "mine", source, RULES).dataset
    online = (
        before.events()
        .drop("split")
        .tail(2)
        .with_columns(
            event_id=pl.Series(["online-1", "online-2"]),
            ingest_time=pl.lit(NOW),
            source_row=pl.Series([FIRST_APPENDED_ROW, FIRST_APPENDED_ROW + 1]),
        )
    )
    rules = EventRules(now=NOW)
    for expected in (True, False):
        ingested = ingest_source(tmp_path, "mine", EventsSource("online", online), rules, append=True)
        assert ingested.is_new == expected
    assert_frame_equal(ingested.dataset.events().drop("split").filter(event_id="online-1"), online.head(1))
    assert ingested.dataset.manifest.source == "events.csv + online"
    rows = pl.Series([FIRST_APPENDED_ROW + number for number in range(2, 6)])
    twice = pl.concat([online, online]).with_columns(event_id=pl.lit("same"), source_row=rows)
    again = ingest_source(tmp_path, "mine", EventsSource("online", twice), rules, append=True)
    assert (again.dataset.manifest.events, sum(again.quarantined.values())) == (9, 3)


def test_a_failure_in_any_step_leaves_the_version_that_was_there(tmp_path: Path) -> None:
    old = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES).dataset
    raw_events(11, 100).write_parquet(tmp_path / "e.parquet")
    source = open_table(tmp_path / "e.parquet")
    before = sorted(tmp_path.rglob("*"))
    for last_step in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            ingest_source(tmp_path, "mine", source, RULES, run=interrupted(after=last_step))
        assert sorted(tmp_path.rglob("*")) == before
    assert open_dataset(tmp_path, "mine") == old
    assert list_datasets(tmp_path) == ["mine"]
    assert old.bucket(USER, 0).height + old.bucket(USER, 1).height <= 6
