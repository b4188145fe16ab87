from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.ingestion import TabularSource, ingest_files
from data.validation import EventRules

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RULES = EventRules(now=NOW, columns={"user_id": "who", "item_id": "what", "event_time": "when"}, time_unit="s")
HEADER = "who,what,when,session\n"
GOOD = "".join(
    f"{user},{item},{1_700_000_000 + second},s\n" for user in ("a b", "Ж/'") for second, item in enumerate("xyz")
)


def events_file(folder: Path, text: str = HEADER + GOOD) -> Path:
    path = folder / "events.csv"
    path.write_text(text)
    return path


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
    assert quarantine["row"][0] == '{"who": "a b", "what": "x", "when": "1700000000", "session": "s"}'
    assert "lone" in ingested.dataset.events()["user_id"]


def test_reading_the_same_file_twice_adds_nothing(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path))
    first = ingest_files(tmp_path, "mine", source, RULES).dataset
    first_ids = set(first.events()["event_id"])
    again = ingest_files(tmp_path, "mine", source, RULES).dataset
    assert again.manifest == first.manifest
    grown = TabularSource(events_file(tmp_path, HEADER + "new,x,1700000000,s\n" + GOOD))
    ids = set(ingest_files(tmp_path, "mine", grown, RULES).dataset.events()["event_id"])
    assert ids > first_ids
    assert len(ids) == 7


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
    ],
)
def test_refused_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    home = tmp_path / "home"
    with pytest.raises(TowerlineError, match=message):
        ingest_files(home, "mine", TabularSource(events_file(tmp_path, text)), RULES)
    assert not home.exists()


def test_attributes_of_no_file_are_refused(tmp_path: Path) -> None:
    source = TabularSource(events_file(tmp_path), item_attributes=["genre"])
    with pytest.raises(TowerlineError, match="--item-attributes genre: there is no file for them; pass --items"):
        ingest_files(tmp_path / "home", "mine", source, RULES)
