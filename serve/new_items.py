"""Items that a data set has got since a variant was trained. They need no training to be recommended.

The models place them by their content, as they place items without events in training. Who answers looks for them
again and again; a replica of a remote stage finds those that it is asked about again in the data set, by their digest.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from cluster.errors import TowerlineError
from data.content import content_version, to_contract
from data.dataset import kept_versions, read_items
from data.schema import ITEM_ID, ITEMS
from train.models.retrieval import content_codes
from train.vocabulary import UNKNOWN, Vocabulary

DIGEST = 16
"""Hexadecimal digits of one."""


@dataclass(frozen=True)
class NewItems:
    """Items that a model has not been trained with, by item_id."""

    table: pl.DataFrame
    """item_id, title, attributes."""

    @classmethod
    def among(cls, items: pl.DataFrame, vocabulary: Vocabulary) -> "NewItems":
        """Those items that the vocabulary does not name, but of whose content it knows something.

        Of others a model could say nothing: they would all be the same item to it.
        """
        known = pl.DataFrame({ITEM_ID: vocabulary.items}, schema={ITEM_ID: pl.String})
        new = items.select(ITEMS.names).join(known, on=ITEM_ID, how="anti").sort(ITEM_ID)
        if new.is_empty():
            return cls(new)
        says_something = (content_codes(new, vocabulary) != UNKNOWN).any(dim=1).numpy()
        return cls(new.filter(pl.Series(says_something, dtype=pl.Boolean)))

    @cached_property
    def digest(self) -> str:
        """Of all that is known of them; empty if there are none."""
        return "" if self.table.is_empty() else content_version([to_contract(self.table, ITEMS)])[:DIGEST]


NONE = NewItems(pl.DataFrame(ITEMS.empty_table()))


class ItemsOnDisk:
    """The items of a data set, looked at again and again. They are read only when another version has become current.

    A home that has no such data set has no new items either.
    """

    def __init__(self, home: Path, dataset: str) -> None:
        self._home = home
        self._dataset = dataset
        self._seen: tuple[Path, Vocabulary, NewItems] | None = None

    def new_to(self, vocabulary: Vocabulary) -> NewItems:
        """What the current version has that the vocabulary does not name."""
        versions = kept_versions(self._home, self._dataset)
        if not versions:
            return NONE
        seen = self._seen
        if seen is None or seen[0] != versions[0] or seen[1] is not vocabulary:
            seen = self._seen = versions[0], vocabulary, NewItems.among(read_items(versions[0]), vocabulary)
        return seen[2]

    def of_digest(self, digest: str, vocabulary: Vocabulary) -> NewItems:
        """The new items of this digest, from the version that has them.

        Raises:
            TowerlineError: none of the versions on disk does.
        """
        if not digest:
            return NONE
        for version in kept_versions(self._home, self._dataset):
            found = NewItems.among(read_items(version), vocabulary)
            if found.digest == digest:
                return found
        raise TowerlineError(
            f"no version of data set {self._dataset!r} in {self._home} has the new items {digest} any more; whoever "
            "answers with them takes up those of the current version within seconds"
        )
