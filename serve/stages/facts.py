"""The facts an explanation may use: what features and catalogue say about one user and one item, and nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data.schema import HISTORY_ITEMS, HISTORY_VALUES, ITEM_EVENT_COUNT, USER_MEAN_VALUE
from serve.batch import Batch, Facts
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN

MAX_NAME = 60
MAX_TRAIT = 30
"""UTF-8 bytes of a name: a byte is at most a token of the language model, whatever the script."""

ROUNDING = 1e-5
"""Relative; the mean of equal values may come out a little above them."""

MAX_CHOSEN = 2
MAX_SHARED = 3


class GatherFacts:
    """Collects the facts for the first items of each answer."""

    def __init__(self, catalogue: Catalogue, items: int) -> None:
        """`items`: how many of each answer's items are to be explained."""
        self._catalogue = catalogue
        self._items = items

    def run(self, batch: Batch) -> Batch:
        """Fill in `facts`."""
        width = batch.codes_BK.shape[1]
        counts = batch.item_features[ITEM_EVENT_COUNT].to_list()
        facts = []
        for row, (call, user) in enumerate(zip(batch.calls, batch.users.iter_rows(named=True), strict=True)):
            liked = liked_items(self._catalogue, user)
            first = [int(code) for code in batch.codes_BK[row, : min(call.count, self._items)] if code != UNKNOWN]
            facts.append(tuple(self._facts(code, liked, counts[row * width + rank]) for rank, code in enumerate(first)))
        return dataclasses.replace(batch, facts=tuple(facts))

    def _facts(self, code: int, liked: Sequence[int], people: int) -> Facts:
        traits = self._traits(code)
        nearest = sorted(liked, key=lambda other: -len(traits & self._traits(other)))[:MAX_CHOSEN]
        shared = self._common(traits, nearest)
        if not shared:
            nearest = nearest[:1]
            shared = self._common(traits, nearest)
        in_order = [_value(token) for token in self._catalogue.attributes(code) if token in shared]
        return Facts(
            code=code,
            item=name_of(self._catalogue, code),
            chosen=tuple(dict.fromkeys(name_of(self._catalogue, other) for other in nearest)),
            traits=tuple(dict.fromkeys(in_order))[:MAX_SHARED],
            people=people,
        )

    def _common(self, traits: set[str], others: Sequence[int]) -> set[str]:
        return traits.intersection(*(self._traits(other) for other in others))

    def _traits(self, code: int) -> set[str]:
        return set(self._catalogue.attributes(code))


def liked_items(catalogue: Catalogue, user: Mapping[str, Any]) -> list[int]:
    """Codes of the items in a user's history that were worth at least the user's average, newest first."""
    history = zip(user[HISTORY_ITEMS] or (), user[HISTORY_VALUES] or (), strict=True)
    least = user[USER_MEAN_VALUE] - ROUNDING * abs(user[USER_MEAN_VALUE])
    codes = [catalogue.code(item) for item, value in history if value >= least]
    return list(dict.fromkeys(code for code in reversed(codes) if code != UNKNOWN))


def name_of(catalogue: Catalogue, code: int) -> str:
    """An item's title, or its id where it has none, in one line of limited length."""
    return printable(catalogue.title(code) or catalogue.item_id(code))


def _value(token: str) -> str:
    """`genre=Comedy` reads `Comedy`."""
    return printable(token.partition("=")[2] or token, MAX_TRAIT)


def printable(text: str, max_bytes: int = MAX_NAME) -> str:
    """One line without control characters, cut to `max_bytes`."""
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    line = " ".join(words) or "?"
    if len(line.encode()) <= max_bytes:
        return line
    return line.encode()[: max_bytes - 3].decode(errors="ignore") + "…"
