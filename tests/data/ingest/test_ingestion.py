from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.dataset import open_dataset
from data.events import ROWS_PER_FILE
from data.ingest.ingestion import TabularSource, ingest_files
from data.quality.validation import EventRules
from data.sources.partitions import Partitions
from tests.data.ingesting import GOOD, HEADER, NOW, RULES, events_file, raw_events


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
    assert not (home / "datasets").exists()


def test_a_file_over_the_limit_for_files_leaves_the_old_version(
    tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    old = ingest_files(tmp_path, "mine", TabularSource(events_file(tmp_path)), RULES).dataset
    raw_events(53, 30_000).write_parquet(tmp_path / "e.parquet")
    before = sorted(tmp_path.rglob("*"))
    limit_files(50_000)
    with pytest.raises(TowerlineError, match=r"larger than the limit for files .*; raise the limit; nothing was"):
        ingest_files(tmp_path, "mine", TabularSource(tmp_path / "e.parquet"), RULES)
    limit_files(-1)
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
