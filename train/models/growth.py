"""Room for items that came after the training: a row in every table by item, and no weight of their own in any."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from data.schema import ITEM_ID
from train.vocabulary import UNKNOWN, Vocabulary


def grown_vocabulary(vocabulary: Vocabulary, items: pl.DataFrame) -> Vocabulary:
    """The vocabulary, every code as it is, and after it the ids of these items. Tokens stay those that were learnt."""
    return replace(vocabulary, items=(*vocabulary.items, *items[ITEM_ID]))


def with_rows(weights: Mapping[str, Tensor], tables: Sequence[str], count: int) -> dict[str, Tensor]:
    """The weights, with `count` rows of zeros after the others in each of `tables`."""
    more = {name: weights[name].new_zeros((count, *weights[name].shape[1:])) for name in tables}
    return {name: torch.cat([table, more[name]]) if name in more else table for name, table in weights.items()}


def stacked_codes(above_IA: Tensor, below_NA: Tensor) -> Tensor:
    """Right-aligned codes of some items over those of others: (I + N, the larger A)."""
    width = max(above_IA.shape[1], below_NA.shape[1])
    return torch.cat([functional.pad(part, (width - part.shape[1], 0), value=UNKNOWN) for part in (above_IA, below_NA)])


def resized(pairs_II: scipy.sparse.csr_array, size: int) -> scipy.sparse.csr_array:
    """A matrix of item pairs for `size` item codes; the further ones have no pair."""
    larger = pairs_II.copy()
    larger.resize((size, size))
    return larger
