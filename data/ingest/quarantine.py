"""The quarantine of a version: that of the version it adds to, then what this ingestion put there, row by row."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.content import to_contract
from data.dataset import QUARANTINE_FILE, Dataset
from data.ingest.attributes import Entities
from data.ingest.parts import NumberedPart, quarantine_file, repeated_file
from data.quality.validation import quarantine_table
from data.schema import QUARANTINE


def write_quarantine(
    version: Path,
    folder: Path,
    parts: Sequence[NumberedPart],
    items: Entities,
    users: Entities,
    *,
    previous: Dataset | None,
) -> int:
    """Write the quarantine of events, items and users; gives its number of rows. One part is in memory at a time.

    A row of a file that is there from `previous` already is not there twice.
    """
    rows = 0
    with pq.ParquetWriter(version / QUARANTINE_FILE, QUARANTINE, compression="zstd") as writer:
        if previous is not None:
            for batch in pq.ParquetFile(previous.path / QUARANTINE_FILE).iter_batches():
                writer.write_batch(batch)
                rows += batch.num_rows
        for table in (*_of_events(folder, parts), _table("items", items), _table("users", users)):
            new = table if previous is None else _without(table, previous)
            writer.write_table(new)
            rows += new.num_rows
    return rows


def is_same_quarantine(one: Path, other: Path) -> bool:
    """Whether two versions hold the same rows in quarantine."""
    first, second = (pl.scan_parquet(version / QUARANTINE_FILE) for version in (one, other))
    return first.collect().equals(second.collect())


def _without(table: pa.Table, previous: Dataset) -> pa.Table:
    """The rows that are not in the quarantine of `previous`."""
    rows = pl.DataFrame(table)
    files = rows.get_column("file").unique().to_list()
    known = pl.scan_parquet(previous.path / QUARANTINE_FILE).filter(pl.col("file").is_in(files)).collect()
    return to_contract(rows.join(known, on=rows.columns, how="anti", maintain_order="left"), QUARANTINE)


def _of_events(folder: Path, parts: Sequence[NumberedPart]) -> Iterator[pa.Table]:
    for part in parts:
        paths = (quarantine_file(folder, part.number), repeated_file(folder, part.number))
        frames = [pl.read_parquet(path) for path in paths if path.exists()]
        if frames:
            yield to_contract(pl.concat(frames).sort("line", maintain_order=True), QUARANTINE)


def _table(name: str, entities: Entities) -> pa.Table:
    return to_contract(quarantine_table(name, entities.file, entities.broken), QUARANTINE)
