import gzip
import itertools
import resource
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data import buckets, ingest_parts
from data.dataset import Dataset, list_datasets, open_dataset, write_dataset
from data.events import FIRST_APPENDED_ROW, ROWS_PER_FILE
from data.ingestion import TabularSource, ingest_files, ingest_source
from data.parallel import Run, on_ray
from data.sources import parquet
from data.sources.events import EventsSource
from data.sources.partitions import Partitions
from data.sources.tabular import open_table
from data.validation import EventRules
from data.views import ITEM, USER

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RULES = EventRules(now=NOW, columns={"user_id": "who", "item_id": "what", "event_time": "when"}, time_unit="s")
HEADER = "who,what,when,session\n"
GOOD = "".join(
    f"{user},{item},{1_700_000_000 + second},s\n" for user in ("a b", "Ж/'") for second, item in enumerate("xyz")
)


def events_file(folder: Path, text: str = HEADER + GOOD, name: str = "events.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def raw_events(users: int, events: int, first: int = 0) -> pl.DataFrame:
    """Raw rows in the columns of RULES, no two alike."""
    numbers = range(first, first + events)
    return pl.DataFrame(
        {
            "who": [f"u{number * 7919 % users}" for number in numbers],
            "what": [f"i{number * 104_729 % 37}" for number in numbers],
            "when": [1_600_000_000 + number // 3 for number in numbers],
            "number": list(numbers),
        }
    )


def interrupted(after: int) -> Run:
    """Runs so many steps in this process, and is then interrupted."""
    steps = itertools.count(1)

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        results = [function(task) for task in tasks]
        if next(steps) == after:
            raise KeyboardInterrupt
        return iter(results)

    return run


def files_of(dataset: Dataset) -> dict[str, bytes]:
    """Content of everything that does not say when it was made."""
    names = (path for path in dataset.path.rglob("*") if path.is_file() and "validation" not in path.name)
    return {str(path.relative_to(dataset.path)): path.read_bytes() for path in names}


def test_events_items_and_users_come_together(tmp_path: Path) -> None:
    items, users = tmp_path / "items.csv", tmp_path / "users.tsv"
    items.write_text("what,title,kind\nx,The X,a|b\nnever,Not yet,c\n")
    users.write_text("user_id\tage\nЖ/'\t30\n")
    source = TabularSource(events_file(tmp_path), items, users, item_attributes=["kind"], user_attributes=["age"])
    dataset = ingest_files(tmp_path, "mine", source, RULES).dataset
    assert dataset.events()["user_id"].unique().sort().to_list() == ["a b", "Ж/'"]
    assert dataset.items().rows() == [("x", "The X", ["kind=a", "kind=b"]), ("never", "Not yet", ["kind=c"])]
    assert dataset.users().rows() == [("Ж/'", ["age=30"])]
    assert dataset.manifest.items == 4
    assert (dataset.path / "validation.html").exists()


def test_good_rows_go_on_and_the_rest_is_counted_by_reason(tmp_path: Path) -> None:
    bad = f"a b,x,{1_700_000_000},s\na b,x,9999999999,s\nbroken\na b,,1700000000,s\nlone,x,1700000000,s\n"
    ingested = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path, HEADER + GOOD + bad)), RULES)
    assert ingested.rows_read == 11
    assert ingested.dataset.manifest.events == 7
    assert ingested.dataset.manifest.quarantined == 4
    assert set(ingested.quarantined) == {
        ("events", "duplicate event: the same row was there before"),
        ("events", "event_time is in the future"),
        ("events", "wrong number of fields: 1 instead of 4"),
        ("events", "item_id is empty"),
    }
    quarantine = ingested.dataset.quarantine()
    assert quarantine["line"].to_list() == [8, 9, 10, 11]
    assert quarantine["file"].unique().to_list() == [str(tmp_path / "events.csv")]
    assert quarantine["row"][0] == '{"who": "a b", "what": "x", "when": "1700000000", "session": "s"}'
    assert "lone" in ingested.dataset.events()["user_id"]


def test_the_same_deed_twice_is_two_events_if_the_rows_differ(tmp_path: Path) -> None:
    text = HEADER + GOOD + "a b,x,1700000000,another session\n"
    dataset = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path, text)), RULES).dataset
    assert dataset.events()["event_id"].n_unique() == 7


def test_a_source_may_say_when_it_knew(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    table = pl.read_csv(events_file(tmp_path)).with_columns(seen=pl.col("when") + 60, event_id=pl.int_range(pl.len()))
    table.write_parquet(path)
    rules = EventRules(now=NOW, columns={**RULES.columns, "ingest_time": "seen"}, time_unit="s")
    dataset = ingest_files(tmp_path, "mine", TabularSource(path), rules).dataset
    assert dataset.manifest.ingest_time_rule == "ingest_time from column 'seen'"
    late = dataset.events().select(pl.col("ingest_time") - pl.col("event_time")).to_series()
    assert set(late.dt.total_seconds()) == {60}
    assert dataset.events()["event_id"].sort().to_list() == ["0", "1", "2", "3", "4", "5"]


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


def test_times_of_many_zones_in_one_column(tmp_path: Path) -> None:
    times = ["2024-01-01T12:00:00Z", "2024-01-01 13:30:00+01:00", "2024-01-01T06:00:00-0800", "2024-01-01 15:00"]
    rows = [f"{user},x{n},{time}\n" for user in "ab" for n, time in enumerate(times)]
    path = events_file(tmp_path, "who,what,when\n" + "".join(rows) + "a,x,2024-01-01 12:00 Europe/Paris\n")
    dataset = ingest_files(tmp_path, "mine", TabularSource(path), EventRules(NOW, RULES.columns)).dataset
    assert [time.hour * 60 + time.minute for time in dataset.events()["event_time"]][::2] == [720, 750, 840, 900]
    assert dataset.quarantine()["reason"].to_list() == ["event_time is not a time in the years 1 to 9999"]


def test_files_of_one_source_may_have_other_types_and_zones(tmp_path: Path) -> None:
    """Numbers that turn to text in one file, another unit, another zone: the same ids and moments."""
    folder = tmp_path / "many"
    folder.mkdir()
    raw = pl.DataFrame({"who": [1, 2] * 3, "what": [7] * 6, "when": [datetime(2024, 1, 1, 12, n) for n in range(6)]})
    raw.with_columns(pl.col("when").dt.replace_time_zone("UTC")).write_parquet(folder / "1.parquet")
    as_text = raw.with_columns(pl.col("who", "what").cast(pl.String), pl.col("when").dt.cast_time_unit("ms"))
    as_text.with_columns(pl.col("when").dt.replace_time_zone("Asia/Tokyo")).write_parquet(folder / "2.parquet")
    dataset = ingest_files(tmp_path, "mine", TabularSource(folder), EventRules(NOW, RULES.columns)).dataset
    assert dataset.manifest.users == 2
    assert dataset.manifest.items == 1
    assert dataset.events()["event_time"].dt.hour().to_list() == [3] * 6 + [12] * 6


def test_files_that_lack_a_column_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    events_file(folder, HEADER + GOOD, "1.csv")
    events_file(folder, "who,what,when,value,extra\nc,x,1700000000,3,e\n", "2.csv")
    with pytest.raises(
        TowerlineError, match=r"1\.csv has no column 'value', which other parts of .*many have; .*--app"
    ):
        ingest_files(tmp_path, "mine", TabularSource(folder), RULES)
    events_file(folder, "who,what,when,extra\nc,x,1700000000,e\n", "2.csv")
    dataset = ingest_files(tmp_path, "mine", TabularSource(folder), RULES).dataset
    assert dataset.manifest.events == 7
    assert dataset.events()["source_row"].max() == ROWS_PER_FILE + 2


def test_a_key_that_json_lines_show_late_is_not_lost(tmp_path: Path) -> None:
    rows = ['{"who": "a", "what": "x", "when": 1700000000}\n'] * 1001 + ['{"who": "a", "value": 3}\n']
    path = events_file(tmp_path, "".join(rows), "e.jsonl")
    with pytest.raises(
        TowerlineError, match=r"'value' \(value\) is in none of the first rows and appears by line 1002"
    ):
        ingest_files(tmp_path, "mine", TabularSource(path), RULES)


def test_a_missing_day_is_named(tmp_path: Path) -> None:
    for day in ("2024-01-01", "2024-01-03"):
        folder = tmp_path / "tree" / f"day={day}"
        folder.mkdir(parents=True)
        folder.joinpath("e.csv").write_text("who,what\n" + "a,x\nb,x\n" * 4 + f"a,{day}\nb,{day}\n")
    rules = EventRules(NOW, {**RULES.columns, "event_time": "day"})
    with pytest.raises(TowerlineError, match="partition day=2024-01-02 is missing between"):
        ingest_files(tmp_path, "mine", TabularSource(tmp_path / "tree"), rules)
    source = TabularSource(tmp_path / "tree", partitions=Partitions(may_have_gaps=True))
    dataset = ingest_files(tmp_path, "mine", source, rules).dataset
    assert dataset.events()["event_time"].dt.day().unique().sort().to_list() == [1, 3]


def test_ids_that_are_none(tmp_path: Path) -> None:
    raw = pl.DataFrame({"who": [1.0, 2.0, None, float("nan")] * 3, "what": ["x"] * 12, "when": range(12)})
    raw.write_parquet(tmp_path / "e.parquet")
    dataset = ingest_files(tmp_path, "mine", TabularSource(tmp_path / "e.parquet"), RULES).dataset
    assert dataset.events()["user_id"].unique().sort().to_list() == ["1", "2"]
    assert set(dataset.quarantine()["reason"]) == {"user_id is missing", "user_id is NaN"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it has no header and no rows"),
        (HEADER, "is empty: it has no rows"),
        (
            HEADER + "a,x,soon,s\nb,x,later,s\n,x,1,s\n",
            r"none of its 3 rows is an event; 2 of them: event_time is not a num",
        ),
        (HEADER + "a,x,1,s\na,x,2,s\na,x,3,s\nb,y,4,s\n", "at least 2 users with 3 or more events each, .* has 1"),
        ("who,what\na,b\n", "has no column 'when' for event_time; it has 'who', 'what'"),
        (HEADER + GOOD + ",x,1,s\n" * 7, "53.8% of 13 rows are broken, max_broken_share is 50.0%"),
    ],
)
def test_refused_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    home = tmp_path / "home"
    with pytest.raises(TowerlineError, match=message):
        ingest_files(home, "mine", TabularSource(events_file(tmp_path, text)), RULES)
    assert not home.exists()


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


def test_a_file_over_the_limit_for_files_leaves_the_old_version(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the one quota that needs no root."""
    old = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES).dataset
    raw_events(53, 30_000).write_parquet(tmp_path / "e.parquet")
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(TowerlineError, match=r"larger than the limit for files .*; raise the limit; nothing was"):
            ingest_files(tmp_path, "mine", TabularSource(tmp_path / "e.parquet"), RULES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.rglob("*")) == before
    assert open_dataset(tmp_path, "mine") == old


def test_attributes_of_no_file_are_refused(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path), item_attributes=["genre"])
    with pytest.raises(TowerlineError, match="--item-attributes genre: there is no file for them; pass --items"):
        ingest_files(tmp_path / "home", "mine", source, RULES)


def test_what_is_for_a_database_is_refused_for_files(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path), table="events")
    with pytest.raises(TowerlineError, match="--query, --table and --order-by are for a database"):
        ingest_files(tmp_path / "home", "mine", source, RULES)
