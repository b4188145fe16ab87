"""The newest events of a view, packed: what sequences and latest values are made of.

For each view in turn: their number (4 bytes), event times, source rows, then column by column the values: numbers as
64-bit words after one byte each that says whether there is one, texts in UTF-8 after their lengths (-1 for null).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from cluster.errors import TowerlineError
from data.online.states.layout import Recents, StateLayout
from data.schema import EVENT_TIME, SOURCE_ROW

OWNER = "_owner"
_WORD = 8
Buffer = bytes | memoryview


def is_text(kind: pl.DataType) -> bool:
    """Whether values of a type are packed as text."""
    return isinstance(kind, pl.String)


def kinds(layout: StateLayout, recents: Recents) -> dict[str, pl.DataType]:
    """Column → type. Raises TowerlineError for a type that cannot be packed."""
    view = layout.views[recents.view]
    found = {column: view.type_of(column) for column in recents.columns}
    for column, kind in found.items():
        if not (is_text(kind) or kind.is_numeric() or kind.is_temporal() or isinstance(kind, pl.Boolean)):
            raise TowerlineError(
                f"view {view.name!r}: the online store cannot keep column {column!r} of type {kind}; derive text or a "
                "number from it"
            )
    return found


def newest(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    """The newest rows of each owner, sorted by (owner, event_time, source_row)."""
    ordered = rows.sort(OWNER, EVENT_TIME, SOURCE_ROW)
    owners = ordered.get_column(OWNER).to_numpy()
    ends = np.searchsorted(owners, owners, side="right")
    return ordered.filter(pl.Series(ends - np.arange(len(owners)) <= length))


class Packer:
    """Packs the rows of a view (`newest`), owner by owner."""

    def __init__(self, rows: pl.DataFrame, types: dict[str, pl.DataType], owners: int) -> None:
        codes = rows.get_column(OWNER).to_numpy()
        self._bounds = np.searchsorted(codes, np.arange(owners + 1)).tolist()
        self._words = [rows.get_column(name).cast(pl.Int64).to_numpy() for name in (EVENT_TIME, SOURCE_ROW)]
        self._columns = [_packed(rows.get_column(name), kind) for name, kind in types.items()]

    def parts(self, owner: int) -> Iterator[Buffer]:
        """The bytes of one owner, in parts."""
        begin, end = self._bounds[owner], self._bounds[owner + 1]
        yield (end - begin).to_bytes(4, "little")
        for words in self._words:
            yield words[begin:end].tobytes()
        for column in self._columns:
            yield from column.parts(begin, end)


@dataclass(frozen=True, eq=False)
class _Numbers:
    is_there: npt.NDArray[np.uint8]
    words: npt.NDArray[np.int64]

    def parts(self, begin: int, end: int) -> Iterator[Buffer]:
        yield self.is_there[begin:end].tobytes()
        yield self.words[begin:end].tobytes()


@dataclass(frozen=True, eq=False)
class _Texts:
    lengths: npt.NDArray[np.int32]
    offsets: list[int]
    utf8: memoryview

    def parts(self, begin: int, end: int) -> Iterator[Buffer]:
        yield self.lengths[begin:end].tobytes()
        yield self.utf8[self.offsets[begin] : self.offsets[end]]


def _packed(column: pl.Series, kind: pl.DataType) -> _Numbers | _Texts:
    has_nulls = column.null_count() > 0
    if is_text(kind):
        encoded = [text.encode() for text in (column.fill_null("") if has_nulls else column).to_list()]
        sizes = np.fromiter(map(len, encoded), dtype=np.int32, count=len(encoded))
        offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).tolist()
        lengths = np.where(column.is_null().to_numpy(), np.int32(-1), sizes) if has_nulls else sizes
        return _Texts(lengths, offsets, memoryview(b"".join(encoded)))
    is_there = column.is_not_null().to_numpy().astype(np.uint8) if has_nulls else np.ones(len(column), dtype=np.uint8)
    values = column.cast(pl.Float64 if kind.is_float() else pl.Int64)
    return _Numbers(is_there, (values.fill_null(0) if has_nulls else values).to_numpy().view(np.int64))


@dataclass
class _Column:
    """What was unpacked of one column so far."""

    flags: list[Buffer] = field(default_factory=list)
    """Whether a number is there, or lengths of texts."""
    values: list[Buffer] = field(default_factory=list)


class Unpacker:
    """Unpacks one view of many entities into columns."""

    def __init__(self, types: dict[str, pl.DataType]) -> None:
        self._types = types
        self._texts = [is_text(kind) for kind in types.values()]
        self._columns = [_Column() for _ in types]
        self._times: list[Buffer] = []
        self._rows: list[Buffer] = []
        self.counts: list[int] = []
        """Events of each entity."""

    def add(self, packed: memoryview, place: int) -> int:
        """Unpack one entity's events at `place`; gives the place after them."""
        count = int.from_bytes(packed[place : place + 4], "little")
        self.counts.append(count)
        place += 4
        for words in (self._times, self._rows):
            words.append(packed[place : place + _WORD * count])
            place += _WORD * count
        for column, holds_text in zip(self._columns, self._texts, strict=True):
            size = (4 if holds_text else 1) * count
            flags = packed[place : place + size]
            place += size
            size = _bytes_of(flags) if holds_text else _WORD * count
            column.flags.append(flags)
            column.values.append(packed[place : place + size])
            place += size
        return place

    def frame(self, owners: Sequence[int] | npt.NDArray[np.int64]) -> pl.DataFrame:
        """Owner, event_time, source_row and the columns of all events, entity by entity."""
        codes = np.repeat(np.asarray(owners, dtype=np.int64), self.counts)
        names = (EVENT_TIME, SOURCE_ROW, *self._types)
        return pl.DataFrame([pl.Series(OWNER, codes), *map(self.column, names)])

    def column(self, name: str) -> pl.Series:
        """A column of all events, entity by entity."""
        if name == EVENT_TIME:
            return pl.Series(name, np.frombuffer(b"".join(self._times), dtype=np.int64)).cast(pl.Datetime("us", "UTC"))
        if name == SOURCE_ROW:
            return pl.Series(name, np.frombuffer(b"".join(self._rows), dtype=np.int64))
        column = self._columns[list(self._types).index(name)]
        return _unpacked(name, self._types[name], b"".join(column.flags), b"".join(column.values))


def _bytes_of(lengths: memoryview) -> int:
    sizes = np.frombuffer(lengths, dtype=np.int32)
    return int(sizes.sum() + np.count_nonzero(sizes < 0))


def _unpacked(name: str, kind: pl.DataType, flags: bytes, values: bytes) -> pl.Series:
    if is_text(kind):
        lengths = np.frombuffer(flags, dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0), dtype=np.int64)])
        valid = None if len(lengths) == 0 or lengths.min() >= 0 else _bitmap(lengths >= 0)
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(values)]
        return pl.Series(name, pa.Array.from_buffers(pa.large_string(), len(lengths), buffers))
    is_there = np.frombuffer(flags, dtype=np.uint8).astype(np.bool_)
    words = np.frombuffer(values, dtype=np.float64 if kind.is_float() else np.int64)
    series = pl.Series(name, words).cast(kind)
    return series if is_there.all() else series.set(pl.Series(~is_there), None)


def _bitmap(is_there: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(is_there, bitorder="little").tobytes())
