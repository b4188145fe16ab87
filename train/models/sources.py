"""The candidate sources that are kept in folders, by the kind that their configuration names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from cluster.errors import TowerlineError
from data.fingerprints import fingerprint
from train.models.catalogue_scorer import last_if_never_met
from train.models.ease import EASE, EASEConfig
from train.models.files import CONFIG_FILE
from train.models.ials import IALS, IALSConfig
from train.models.ials_blocks import in_process, solve
from train.models.interactions import histories
from train.models.item_item import ItemItem, ItemItemConfig
from train.models.popularity import Popularity, PopularityConfig
from train.recommender import CandidateSource
from train.vocabulary import Vocabulary

Source = Popularity | ItemItem | EASE | IALS
SourceConfig = Annotated[PopularityConfig | ItemItemConfig | EASEConfig | IALSConfig, Field(discriminator="kind")]
"""Of any of them; `kind` says which."""

SOURCES: dict[str, type[Popularity] | type[ItemItem] | type[EASE] | type[IALS]] = {
    "popularity": Popularity,
    "item_item": ItemItem,
    "ease": EASE,
    "ials": IALS,
}


_SCORING: dict[str, tuple[Callable[..., object], ...]] = {
    "popularity": (Popularity.scores, Popularity._recent, Popularity._counts, Popularity._left),
    "item_item": (ItemItem.scores, histories),
    "ease": (EASE.scores, histories, last_if_never_met),
    "ials": (IALS.scores, IALS._folded_in, histories, last_if_never_met, in_process, solve),
}


class KeptSource(CandidateSource, Protocol):
    """A candidate source that can be kept in a folder."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Whose codes it speaks."""

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder."""


def new_source(config: SourceConfig) -> Source:
    """A source that has learnt nothing yet."""
    match config:
        case PopularityConfig():
            return Popularity(config)
        case ItemItemConfig():
            return ItemItem(config)
        case EASEConfig():
            return EASE(config)
        case IALSConfig():
            return IALS(config)


def scoring_fingerprint(kind: str) -> str:
    """A hash of how a kind of source scores, what it has learnt aside (see `data.fingerprints.fingerprint`)."""
    return fingerprint(*_SCORING[kind])


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
