"""Events that lie on object storage, from their address to the data set."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.dataset import Dataset, open_dataset
from data.ingest.ingestion import TabularSource, ingest
from data.parallel import in_process
from jobs.ingest_events import main
from tests.data.ingesting import RULES, raw_events
from tests.data.servers import S3Server

pytestmark = pytest.mark.cluster

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
SUFFIXES = ("parquet", "csv", "jsonl")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def put(server: S3Server) -> Callable[[str, bytes], str]:
    """Store an object under BUCKET/KEY; gives the address of what is in front of the last `/`."""

    def put(key: str, content: bytes) -> str:
        server.filesystem.create_dir(key.partition("/")[0])
        with server.filesystem.open_output_stream(key) as file:
            file.write(content)
        return address(server, key.rpartition("/")[0])

    return put


def address(server: S3Server, path: str) -> str:
    return f"s3://anna:secret@{path}?{server.options}"


def encoded(events: pl.DataFrame, suffix: str) -> bytes:
    buffer = io.BytesIO()
    {"parquet": events.write_parquet, "csv": events.write_csv, "jsonl": events.write_ndjson}[suffix](buffer)
    return buffer.getvalue()


def days() -> dict[str, pl.DataFrame]:
    return {f"date={day}": raw_events(9, 60, 60 * number) for number, day in enumerate(DAYS)}


def run(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Dataset:
    """The job, in this process and its Ray."""
    monkeypatch.setenv("TOWERLINE_HOME", str(home))
    columns = [f"{name}={yours}" for name, yours in RULES.columns.items()]
    main(["--dataset", "shop", "--columns", *columns, "--time-unit", "s", *arguments])
    return open_dataset(home, "shop")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_days_of_each_kind_are_read_as_they_would_be_from_a_disk(
    put: Callable[[str, bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for folder, events in days().items():
        content = encoded(events, suffix)
        bucket = put(f"shop-{suffix}/{folder}/part.{suffix}", content).replace(f"/{folder}", "")
        (tmp_path / "disk" / folder).mkdir(parents=True)
        (tmp_path / "disk" / folder / f"part.{suffix}").write_bytes(content)
    asked = ["--partitions", f"date={DAYS[1]}..{DAYS[2]}"]
    from_s3 = run(tmp_path / "s3-home", monkeypatch, "--events", bucket, *asked)
    from_disk = run(tmp_path / "home", monkeypatch, "--events", str(tmp_path / "disk"), *asked)
    assert from_s3.events().equals(from_disk.events())
    assert from_s3.manifest.events == 120
    written = [file.read_text() for file in (tmp_path / "s3-home").rglob("*.json")]
    assert any(f"s3://shop-{suffix}" in text for text in written)
    assert not any("secret" in text for text in written)


def test_what_is_not_there_is_one_clear_error(
    put: Callable[[str, bytes], str], server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = days()
    del folders[f"date={DAYS[1]}"]
    for folder, events in folders.items():
        put(f"gap/events/{folder}/part.csv", encoded(events, "csv"))
    for path, message in {
        "nowhere/events": "s3://nowhere/events does not exist; pass a file, a folder or a glob",
        "gap/nothing": "s3://gap/nothing does not exist",
        "gap/events/*/*.parquet": r"s3://gap/events/\*/\*.parquet holds no files of rows",
        "gap/events": f"s3://gap/events: partition date={DAYS[1]} is missing between",
    }.items():
        with pytest.raises(TowerlineError, match=message) as error:
            run(tmp_path, monkeypatch, "--events", address(server, path))
        assert "secret" not in str(error.value)
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_object_that_vanishes_while_it_is_read_leaves_no_data_set(
    put: Callable[[str, bytes], str], server: S3Server, tmp_path: Path, suffix: str
) -> None:
    """One that is gone when its turn to be read comes."""
    bucket = put(f"passing/{suffix}/part.{suffix}", encoded(raw_events(9, 60), suffix))

    def vanishing(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        server.filesystem.delete_file(f"passing/{suffix}/part.{suffix}")
        return in_process(function, tasks)

    with pytest.raises(TowerlineError, match=rf"^s3://passing/{suffix}/part.{suffix} does not exist any more"):
        ingest(tmp_path, "shop", TabularSource(events=bucket), RULES, run=vanishing)
    with pytest.raises(TowerlineError, match="'shop'"):
        open_dataset(tmp_path, "shop")


def test_a_storage_that_goes_away_is_one_clear_error(tmp_path: Path) -> None:
    with S3Server() as passing:
        passing.filesystem.create_dir("shop")
        with passing.filesystem.open_output_stream("shop/events.csv") as file:
            file.write(encoded(raw_events(9, 60), "csv"))

        def left_alone(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            passing.kill()
            return in_process(function, tasks)

        source = TabularSource(events=address(passing, "shop/events.csv"))
        with pytest.raises(TowerlineError, match=r"^s3://shop/events.csv cannot be opened \(.*connect.*\); "):
            ingest(tmp_path, "shop", source, RULES, run=left_alone)
