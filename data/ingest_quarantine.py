"""The quarantine of a version: what the parts of an ingestion put there, in the order of the rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.attributes import Entities
from data.content import to_contract
from data.dataset import QUARANTINE_FILE
from data.ingest_parts import NumberedPart, quarantine_file, repeated_file
from data.schema import QUARANTINE
from data.validation import quarantine_table


def write_quarantine(
    version: Path, folder: Path, parts: Sequence[NumberedPart], items: Entities, users: Entities
) -> int:
    """Write the quarantine of events, items and users; gives its number of rows. One part is in memory at a time."""
    rows = 0
    with pq.ParquetWriter(version / QUARANTINE_FILE, QUARANTINE, compression="zstd") as writer:
        for table in (*_of_events(folder, parts), _table("items", items), _table("users", users)):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _of_events(folder: Path, parts: Sequence[NumberedPart]) -> Iterator[pa.Table]:
    for part in parts:
        paths = (quarantine_file(folder, part.number), repeated_file(folder, part.number))
        frames = [pl.read_parquet(path) for path in paths if path.exists()]
        if frames:
            yield to_contract(pl.concat(frames).sort("line", maintain_order=True), QUARANTINE)


def _table(name: str, entities: Entities) -> pa.Table:
    return to_contract(quarantine_table(name, entities.file, entities.broken), QUARANTINE)
