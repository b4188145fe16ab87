"""Ids and attribute tokens as dense codes, versioned with the model that learnt them."""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import TowerlineError
from data.schema import ATTRIBUTES, EVENT_TYPE, ITEM_ID, TITLE

UNKNOWN = 0
"""The code of padding and of whatever the model has never seen; real codes start at 1."""

VALUE_BINS = 8
TITLE_WORD = "title="
"""Words of an item's title are tokens like its attributes: `title=wars`."""
RARE_TITLES = 2
"""A word that stands in fewer titles than this tells nothing of other items."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model knows by name. The code of the n-th entry (from 0) is n + 1."""

    items: tuple[str, ...]
    item_attributes: tuple[str, ...]
    user_attributes: tuple[str, ...]
    value_edges: tuple[float, ...]
    """Ascending inner edges of the bins that event values (ratings, amounts) fall into."""
    event_types: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        events: pl.DataFrame,
        items: pl.DataFrame,
        users: pl.DataFrame,
        values: pl.Series,
        inputs: Container[str] = ("attributes", "title"),
    ) -> "Vocabulary":
        """The vocabulary of a catalogue: listed items first, then those that only events name.

        `values`: event values of the training rows, which the bins are the quantiles of. `inputs`: which tokens are
        known at all; "attributes" are those of items and users.
        """
        unlisted = sorted(set(events[ITEM_ID]) - set(items[ITEM_ID]))
        quantiles = np.quantile(values.to_numpy(), np.linspace(0, 1, VALUE_BINS + 1)[1:-1])
        return cls(
            items=(*items[ITEM_ID], *unlisted),
            item_attributes=_item_tokens(items, inputs),
            user_attributes=_distinct(users[ATTRIBUTES]) if "attributes" in inputs else (),
            value_edges=tuple(float(edge) for edge in np.unique(quantiles)),
            event_types=tuple(events[EVENT_TYPE].unique().sort()),
        )

    def grown(self, other: "Vocabulary") -> "Vocabulary":
        """This vocabulary, every code as it is, and after it what only `other` knows. The bins of values stay."""
        return Vocabulary(
            items=_with_new(self.items, other.items),
            item_attributes=_with_new(self.item_attributes, other.item_attributes),
            user_attributes=_with_new(self.user_attributes, other.user_attributes),
            value_edges=self.value_edges,
            event_types=_with_new(self.event_types, other.event_types),
        )

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what `json.dumps(dataclasses.asdict(vocabulary))` gave."""
        return cls(**{name: tuple(values) for name, values in json.loads(text).items()})

    @property
    def num_items(self) -> int:
        """Number of known items; item codes run from 1 to this."""
        return len(self.items)

    @cached_property
    def item_codes(self) -> dict[str, int]:
        """Item id → code."""
        return _codes(self.items)

    @cached_property
    def item_attribute_codes(self) -> dict[str, int]:
        """Token of an item, a word of its title included → code."""
        return _codes(self.item_attributes)

    @cached_property
    def user_attribute_codes(self) -> dict[str, int]:
        """Token of a user → code."""
        return _codes(self.user_attributes)

    @cached_property
    def event_type_codes(self) -> dict[str, int]:
        """Type of an event → code."""
        return _codes(self.event_types)

    def item_code(self, item_id: str) -> int:
        """The code of an item, `UNKNOWN` if it has none."""
        return self.item_codes.get(item_id, UNKNOWN)

    def item_ids(self, codes: Iterable[int]) -> list[str]:
        """The ids of known item codes."""
        return [self.items[code - 1] for code in codes]

    def encode_items(self, ids: pl.Series) -> npt.NDArray[np.int64]:
        """Codes (N,) of N item ids."""
        return encode(ids.to_arrow(), self.item_codes)

    def encode_values(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Bins of event values, from 1; 0 is left to padding. Same shape as `values`."""
        return np.digitize(values, np.asarray(self.value_edges, dtype=np.float32)).astype(np.int64) + 1


def encode(tokens: pa.Array, codes: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Codes (N,) of N tokens; `UNKNOWN` for null and for those without one. Each distinct token is looked up once."""
    distinct = pc.dictionary_encode(tokens, null_encoding="encode")
    known = [UNKNOWN if token is None else codes.get(token, UNKNOWN) for token in distinct.dictionary.to_pylist()]
    found: npt.NDArray[np.int64] = np.array(known, dtype=np.int64)[distinct.indices.to_numpy()]
    return found


def _codes(tokens: Sequence[str]) -> dict[str, int]:
    return {token: code for code, token in enumerate(tokens, start=1)}


def require_same_codes(name: str, vocabulary: Vocabulary, others: str, expected: Vocabulary) -> None:
    """Raise TowerlineError unless the codes of two vocabularies mean the same items. `name`, `others`: whose they are.

    What the one recommends would be other items for the other.
    """
    if vocabulary.items == expected.items:
        return
    pairs = zip(vocabulary.items, expected.items, strict=False)
    code = next((code for code, (ours, theirs) in enumerate(pairs, start=1) if ours != theirs), None)
    first = (
        f"item code {code} is {vocabulary.items[code - 1]!r} here and {expected.items[code - 1]!r} there"
        if code
        else f"it knows {vocabulary.num_items} items instead of {expected.num_items}"
    )
    raise TowerlineError(f"the vocabulary of {name} is not that of {others}: {first}; train them again, together")


def title_tokens(items: pl.DataFrame) -> pl.Series:
    """The words of each item's title as tokens, each once, in the order of the title."""
    words = pl.col(TITLE).fill_null("").str.to_lowercase().str.extract_all(r"\w+").list.unique(maintain_order=True)
    return items.select(words.list.eval(pl.lit(TITLE_WORD) + pl.element())).to_series()


def _item_tokens(items: pl.DataFrame, inputs: Container[str]) -> tuple[str, ...]:
    attributes = _distinct(items[ATTRIBUTES]) if "attributes" in inputs else ()
    if "title" not in inputs:
        return attributes
    titles = title_tokens(items).explode().drop_nulls().alias(TITLE).value_counts()
    words = titles.filter(pl.col("count") >= RARE_TITLES)[TITLE]
    return tuple(sorted({*attributes, *words}))


def _with_new(known: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *others)))


def _distinct(tokens: pl.Series) -> tuple[str, ...]:
    return tuple(tokens.explode().drop_nulls().unique().sort())
