"""What is said of a cold user to the language model that re-ranks: attributes, names of liked items, candidates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data.schema import USER_ATTRIBUTES
from serve.batch import Batch, Profile
from serve.stages.facts import MAX_TRAIT, liked_items, name_of, printable
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN

MAX_LIKED = 5
MAX_ATTRIBUTES = 4


class GatherProfiles:
    """Collects what the names of the first candidates are judged by."""

    def __init__(self, catalogue: Catalogue, candidates: int) -> None:
        """`candidates`: how many of the ranker's first items are to be re-ranked."""
        self._catalogue = catalogue
        self._candidates = candidates

    def run(self, batch: Batch) -> Batch:
        """Fill in `profiles`."""
        profiles = [
            profile_of(self._catalogue, user, codes_K[: self._candidates].tolist())
            for user, codes_K in zip(batch.users.iter_rows(named=True), batch.codes_BK, strict=True)
        ]
        return dataclasses.replace(batch, profiles=tuple(profiles))


def profile_of(catalogue: Catalogue, user: Mapping[str, Any], codes: Sequence[int]) -> Profile:
    """The profile of a row of user features (`data.schema`) and the codes of the candidates, best first."""
    liked = (name_of(catalogue, code) for code in liked_items(catalogue, user)[:MAX_LIKED])
    return Profile(
        attributes=tuple(_said(token) for token in (user[USER_ATTRIBUTES] or ())[:MAX_ATTRIBUTES]),
        liked=tuple(dict.fromkeys(liked)),
        candidates=tuple(name_of(catalogue, code) for code in codes if code != UNKNOWN),
    )


def _said(token: str) -> str:
    """`age=24` reads `age 24`."""
    return printable(token.replace("=", " ", 1), MAX_TRAIT)
