"""Hash buckets of users and of items: the unit that a build reads, computes and writes, with no shuffle in between.

The number of buckets is a power of two, so that bucket b of B is made of buckets b, b + B, b + 2B, … of any larger
power of two.
"""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS_PER_BUCKET = 250_000
FEWEST_BUCKETS = 4
BUCKET = "bucket"
ROWS_PER_GROUP = 65_536
LONGEST_AT_ONCE = 128
"""Bytes of an id; the few that are longer are hashed one by one."""


def buckets_for(events: int) -> int:
    """Number of buckets for so many events: a power of two."""
    wanted = -(-events // EVENTS_PER_BUCKET)
    return max(FEWEST_BUCKETS, 1 << (wanted - 1).bit_length() if wanted > 0 else 0)


def bucket_of(entity_id: str, buckets: int) -> int:
    """The bucket of an id, the same on every machine."""
    return zlib.crc32(entity_id.encode()) % buckets


def with_bucket(frame: pl.DataFrame, column: str, buckets: int, name: str = BUCKET) -> pl.DataFrame:
    """Add the bucket (int64) of the ids in `column` as column `name`."""
    return frame.with_columns(bucket_numbers(frame.get_column(column), buckets).alias(name))


def bucket_numbers(ids: pl.Series, buckets: int) -> pl.Series:
    """The bucket (int64) of each id: CRC-32 of all ids at once, a byte of each at a time."""
    texts = ids.to_arrow().cast(pa.large_string())
    _, bounds, data = texts.buffers()
    offsets = np.frombuffer(bounds, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data or b"", dtype=np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    checksums = np.full(len(texts), 0xFFFFFFFF, dtype=np.uint32)
    rows = np.flatnonzero((lengths > 0) & (lengths <= LONGEST_AT_ONCE))
    position = 0
    while len(rows):
        checksum = checksums[rows]
        checksums[rows] = _crc_table()[(checksum ^ characters[starts[rows] + position]) & 0xFF] ^ (checksum >> 8)
        position += 1
        rows = rows[lengths[rows] > position]
    checksums ^= np.uint32(0xFFFFFFFF)
    for row in np.flatnonzero(lengths > LONGEST_AT_ONCE):
        checksums[row] = zlib.crc32(texts[row].as_py().encode())
    return pl.Series(checksums.astype(np.int64) % buckets)


@cache
def _crc_table() -> npt.NDArray[np.uint32]:
    """What CRC-32 does to each value of a byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1)
    return table


def split_by_bucket(frame: pl.DataFrame, column: str, buckets: int) -> dict[int, pl.DataFrame]:
    """The rows of each bucket that has any, in their order."""
    parts = with_bucket(frame, column, buckets).partition_by(BUCKET, as_dict=True, include_key=False)
    return {int(key[0]): part for key, part in parts.items()}


def bucket_file(folder: Path, bucket: int) -> Path:
    """File of a bucket."""
    return folder / f"bucket-{bucket:05d}.parquet"


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet as every table of a data set is written."""
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)
