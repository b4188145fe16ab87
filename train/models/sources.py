"""The candidate sources that are kept in folders, by the kind that their configuration names."""

import json
from pathlib import Path
from typing import Protocol

from cluster.errors import TowerlineError
from train.models.ease import EASE
from train.models.files import CONFIG_FILE
from train.models.ials import IALS
from train.models.item_item import ItemItem
from train.models.popularity import Popularity
from train.recommender import CandidateSource
from train.vocabulary import Vocabulary

SOURCES: dict[str, type[Popularity] | type[ItemItem] | type[EASE] | type[IALS]] = {
    "popularity": Popularity,
    "item_item": ItemItem,
    "ease": EASE,
    "ials": IALS,
}


class KeptSource(CandidateSource, Protocol):
    """A candidate source that can be kept in a folder."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Whose codes it speaks."""

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder."""


def load_source(folder: Path) -> KeptSource:
    """Read what `save` of one of `SOURCES` wrote.

    Raises:
        TowerlineError: the folder holds no source, or one of another kind.
    """
    try:
        kind = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError) as error:
        raise TowerlineError(
            f"{folder / CONFIG_FILE} is not that of a candidate source: {error}; save one there again"
        ) from error
    if kind not in SOURCES:
        raise TowerlineError(f"{folder}: kind is {kind!r}, expected one of {', '.join(SOURCES)}")
    return SOURCES[kind].load(folder)
