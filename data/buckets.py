"""Hash buckets of users and of items: the unit that a build reads, computes and writes, with no shuffle in between.

The number of buckets is a power of two, so that bucket b of B is made of buckets b, b + B, b + 2B, … of any larger
power of two.
"""

import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS_PER_BUCKET = 250_000
FEWEST_BUCKETS = 4
BUCKET = "bucket"
ROWS_PER_GROUP = 65_536


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
    """The bucket of each id; every distinct id is hashed once."""
    encoded = pa.array(ids.to_arrow()).cast(pa.large_string()).dictionary_encode()
    hashes = np.fromiter((zlib.crc32(text.encode()) for text in encoded.dictionary.to_pylist()), dtype=np.int64)
    return pl.Series((hashes % buckets)[encoded.indices.to_numpy()])


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
