"""Generated events are what was asked for, again and again, whatever their number."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks import events as generator
from benchmarks.events import GIANT, EventStream, write_events
from data.schema import EVENTS


def all_of(stream: EventStream) -> pl.DataFrame:
    return pl.concat(list(stream.frames()))


def test_the_same_seed_gives_the_same_events() -> None:
    stream = EventStream(5_000, seed=3, late_share=0.2)
    assert_frame_equal(all_of(stream), all_of(stream))
    assert not all_of(stream).equals(all_of(EventStream(5_000, seed=4, late_share=0.2)))


def test_events_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "EVENTS_AT_ONCE", 7_000)
    frame = all_of(EventStream(50_000))
    assert frame.height == frame["event_id"].n_unique() == 50_000
    assert set(frame.columns) < set(EVENTS.names)
    assert frame["event_time"].is_sorted()
    assert (frame["event_time"] == frame["ingest_time"]).all()
    assert (frame["event_time"].max() - frame["event_time"].min()).days == 89
    counts = frame["item_id"].value_counts()["count"].sort(descending=True)
    assert counts[0] > 8 * counts.median()


def test_shares_are_what_was_asked_for() -> None:
    frame = all_of(EventStream(20_000, late_share=0.1, giant_share=0.2))
    assert frame.filter(user_id=GIANT).height == pytest.approx(4_000, rel=0.1)
    late = frame.filter(pl.col("ingest_time") > pl.col("event_time"))
    assert late.height == pytest.approx(2_000, rel=0.1)


def test_files_that_are_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "EVENTS_AT_ONCE", 700)
    files = write_events(EventStream(2_000), tmp_path / "events")
    assert [pl.read_parquet(file).height for file in files] == [700, 700, 600]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert write_events(EventStream(2_000), tmp_path / "events") == files
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert_frame_equal(pl.concat([pl.read_parquet(file) for file in files]), all_of(EventStream(2_000)))
