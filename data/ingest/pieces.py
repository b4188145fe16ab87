"""Rows on their way to a bucket: files that hold the rows of each bucket apart, to be read bucket by bucket."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa

from data.buckets import BUCKET, split_by_bucket, with_bucket

ROWS_PER_PIECE = 500_000
"""Rows that a task gathers before it writes them."""
ROWS_PER_BATCH = 2_048
MOST_BATCHES = 1_024


def write_piece(path: Path, rows: pl.DataFrame, column: str) -> Path:
    """Write rows, bucketed by the ids in `column`: as many buckets as there are rows to fill."""
    buckets = min(MOST_BATCHES, 1 << max(0, rows.height // ROWS_PER_BATCH).bit_length())
    parts = split_by_bucket(rows, column, buckets)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.to_arrow().schema, options=options) as writer:
        for bucket in range(buckets):
            table = parts.get(bucket, rows.clear()).to_arrow().combine_chunks()
            writer.write_batch(table.to_batches()[0] if table.num_rows else _empty(table.schema))
    return path


def read_pieces(paths: Iterable[Path], column: str, bucket: int, buckets: int) -> list[pl.DataFrame]:
    """The rows of one of `buckets` buckets, of each file in turn."""
    return [_read(path, column, bucket, buckets) for path in paths]


def _read(path: Path, column: str, bucket: int, buckets: int) -> pl.DataFrame:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        there = reader.num_record_batches
        wanted = range(bucket, there, buckets) if there > buckets else [bucket % there]
        rows = pl.DataFrame(pa.Table.from_batches([reader.get_batch(number) for number in wanted], reader.schema))
    if there >= buckets:
        return rows
    return with_bucket(rows, column, buckets).filter(pl.col(BUCKET) == bucket).drop(BUCKET)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], kind) for kind in schema.types], schema=schema)
