"""Rows on their way from one bucketing to another: Arrow files in which every bucket's rows are a slice of their own.

This is what stands in for a shuffle. A task that holds a bucket of items writes one file; a task that needs a bucket
of users reads its slice of every such file, and nothing else of it.
"""

import itertools
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data.schema import SOURCE_ROW

Positions = np.ndarray[Any, np.dtype[np.int64]]


def write_slices(path: Path, parts: Iterable[tuple[pl.Series, pl.DataFrame]], buckets: int) -> None:
    """Write frames, each with the bucket of each of its rows, so that a reader sees the file whole or not at all.

    There must be at least one frame. Frame p's rows of bucket b are record batch p * buckets + b, in their order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        _write(temporary, parts, buckets)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_slices(files: Iterable[Path], bucket: int, buckets: int) -> pl.DataFrame:
    """The rows of a bucket in all files, which have the same columns."""
    return pl.DataFrame(pa.Table.from_batches([batch for each in _batches(files, bucket, buckets) for batch in each]))


def each_slice(files: Iterable[Path], bucket: int, buckets: int) -> Iterator[pl.DataFrame]:
    """The rows of a bucket, file by file."""
    for batches in _batches(files, bucket, buckets):
        yield pl.DataFrame(pa.Table.from_batches(batches))


class BySourceRow:
    """Rows that are looked up by `source_row`."""

    def __init__(self, rows: pl.DataFrame) -> None:
        numbers = rows.get_column(SOURCE_ROW).to_numpy()
        self._rows = rows.drop(SOURCE_ROW)
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]

    def at(self, wanted: pl.Series) -> pl.DataFrame:
        """The other columns of the rows with these numbers, in the order of the numbers. Raises KeyError without."""
        numbers = wanted.to_numpy()
        places = np.minimum(np.searchsorted(self._numbers, numbers), max(len(self._numbers) - 1, 0))
        if len(numbers) and not (len(self._numbers) and np.array_equal(self._numbers[places], numbers)):
            raise KeyError(f"{SOURCE_ROW}: some of {len(numbers)} rows are missing")
        return self._rows[self._order[places]]


def _write(path: Path, parts: Iterable[tuple[pl.Series, pl.DataFrame]], buckets: int) -> None:
    writer: pa.RecordBatchFileWriter | None = None
    with pa.OSFile(str(path), "wb") as sink:
        for numbers, frame in parts:
            order = np.argsort(numbers.to_numpy(), kind="stable")
            bounds = np.searchsorted(numbers.to_numpy()[order], np.arange(buckets + 1))
            table = frame[order].to_arrow().combine_chunks()
            writer = writer or pa.ipc.new_file(sink, table.schema)
            for start, stop in itertools.pairwise(bounds):
                writer.write_batch(_batch(table, int(start), int(stop)))
        assert writer is not None
        writer.close()


def _batch(table: pa.Table, start: int, stop: int) -> pa.RecordBatch:
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.record_batch([column.slice(start, stop - start) for column in columns], schema=table.schema)


def _batches(files: Iterable[Path], bucket: int, buckets: int) -> Iterator[list[pa.RecordBatch]]:
    for file in files:
        with pa.OSFile(str(file), "rb") as source:
            reader = pa.ipc.open_file(source)
            yield [reader.get_batch(number) for number in range(bucket, reader.num_record_batches, buckets)]
