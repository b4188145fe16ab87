"""Feature rows as padded tensors: the one step between a table and a model, offline and online."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from data.schema import EVENT_TIME, HISTORY_ITEMS, HISTORY_TIMES, HISTORY_TYPES, HISTORY_VALUES, USER_ATTRIBUTES
from train.vocabulary import UNKNOWN, Vocabulary, encode

MAX_ATTRIBUTES = 16
"""Attribute tokens read per user; of more the last ones."""


@dataclass(frozen=True)
class UserBatch:
    """What the user tower reads, right-aligned (the newest event is last) and padded with `UNKNOWN`."""

    history_BL: Tensor
    """int32: item codes of the last L events."""
    history_values_BL: Tensor
    """int8: value bins of those events."""
    history_types_BL: Tensor
    """int16: codes of the types of those events."""
    history_ages_BL: Tensor
    """float32: seconds from each of those events to the moment asked about."""
    attributes_BA: Tensor
    """int32: user attribute codes."""

    def __len__(self) -> int:
        return len(self.history_BL)

    def __getitem__(self, rows: Tensor | slice) -> "UserBatch":
        return UserBatch(*(tensor[rows] for tensor in self._tensors()))

    def to(self, device: torch.device) -> "UserBatch":
        """The same batch on another device."""
        return UserBatch(*(tensor.to(device) for tensor in self._tensors()))

    def without_history(self) -> "UserBatch":
        """The same users as if they had done nothing yet."""
        *history, attributes_BA = self._tensors()
        return UserBatch(*(*(torch.zeros_like(tensor) for tensor in history), attributes_BA))

    def recent(self, length: int) -> "UserBatch":
        """The same users with the last `length` events of their histories alone."""
        *history, attributes_BA = self._tensors()
        return UserBatch(*(*(tensor[:, -length:] for tensor in history), attributes_BA))

    def _tensors(self) -> tuple[Tensor, ...]:
        return (
            self.history_BL,
            self.history_values_BL,
            self.history_types_BL,
            self.history_ages_BL,
            self.attributes_BA,
        )


def encode_users(rows: pl.DataFrame, vocabulary: Vocabulary, history_length: int) -> UserBatch:
    """Encode B feature rows: their `history_…` columns, `user_attributes` and `event_time`."""
    histories, values_of, types_of, times_of = (
        rows[name].to_arrow() for name in (HISTORY_ITEMS, HISTORY_VALUES, HISTORY_TYPES, HISTORY_TIMES)
    )
    layout = _right_aligned(histories, history_length)
    items = encode(histories.flatten(), vocabulary.item_codes)
    values = vocabulary.encode_values(values_of.flatten().to_numpy())
    types = encode(types_of.flatten(), vocabulary.event_type_codes)
    times, now = _micros(times_of.flatten()), _micros(rows[EVENT_TIME].to_arrow())
    ages = (now[layout.row] - times[layout.source]) / 1e6
    return UserBatch(
        history_BL=layout.scatter(items, np.int32),
        history_values_BL=layout.scatter(values, np.int8),
        history_types_BL=layout.scatter(types, np.int16),
        history_ages_BL=layout.scatter_kept(ages, np.float32),
        attributes_BA=encode_attributes(rows[USER_ATTRIBUTES], vocabulary.user_attribute_codes),
    )


def encode_attributes(tokens: pl.Series, codes: Mapping[str, int], width: int = MAX_ATTRIBUTES) -> Tensor:
    """Codes (N, width), int32, of N token lists."""
    lists = tokens.to_arrow()
    return _right_aligned(lists, width).scatter(encode(lists.flatten(), codes), np.int32)


@dataclass(frozen=True)
class _Layout:
    """Where each kept element of a ragged column goes in a right-aligned (rows, width) array."""

    shape: tuple[int, int]
    source: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]

    def scatter(self, flat: npt.NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
        return self.scatter_kept(flat[self.source], dtype)

    def scatter_kept(self, kept: npt.NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
        padded = np.full(self.shape, UNKNOWN, dtype=dtype)
        padded[self.row, self.column] = kept
        return torch.from_numpy(padded)


def _right_aligned(lists: pa.Array, width: int) -> _Layout:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())
    kept = np.flatnonzero(from_end <= width)
    return _Layout((len(lengths), width), kept, row[kept], width - from_end[kept])


def _micros(moments: pa.Array) -> npt.NDArray[np.int64]:
    micros: npt.NDArray[np.int64] = moments.cast(pa.int64()).to_numpy()
    return micros
