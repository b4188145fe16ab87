"""Tables in the types of a contract, and a hash of what they say."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc


def to_contract(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame's columns of `schema`, in its types. Raises on a null where the contract has none."""
    table = frame.select(schema.names).to_arrow().cast(schema)
    return table.combine_chunks()


def content_version(tables: Iterable[pa.Table]) -> str:
    """SHA-256 over names, types and values: independent of file format, chunking and compression."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.num_rows} rows".encode())
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            digest.update(f"{name}: {column.type}".encode())
            for part in _canonical_bytes(column):
                digest.update(part)
    return digest.hexdigest()


def version_of(buckets: Iterable[str], others: Iterable[pa.Table]) -> str:
    """The version of a data set: from the content versions of its buckets, in order, and of its other tables."""
    return hashlib.sha256("\n".join([*buckets, *(content_version([table]) for table in others)]).encode()).hexdigest()


def _canonical_bytes(column: pa.Array) -> Iterator[bytes | memoryview]:
    if pa.types.is_list(column.type):
        yield np.asarray(pc.list_value_length(column)).tobytes()
        yield from _canonical_bytes(pc.list_flatten(column))
    elif pa.types.is_string(column.type):
        yield np.asarray(pc.fill_null(pc.binary_length(column), -1)).tobytes()
        yield _text_bytes(pc.drop_null(column))
    elif pa.types.is_timestamp(column.type):
        yield np.asarray(column.cast(pa.int64())).tobytes()
    else:
        yield np.asarray(column).tobytes()


def _text_bytes(texts: pa.Array) -> bytes | memoryview:
    """All texts joined, without a Python object for each."""
    _, offsets, values = texts.buffers()
    if not len(texts) or values is None:
        return b""
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values)[int(bounds[0]) : int(bounds[-1])]
