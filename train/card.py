"""A model version's card: where it comes from, enough to train it again, and whether this code may serve it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from data.features import feature_fingerprints
from data.known_events import KnownEvents
from train.evaluation import Evaluation
from train.models.candidate_features import ranker_fingerprints
from train.training_rows import Learnt, TrainingRows

Kind = Literal["two-tower", "ranker"]
KINDS: tuple[Kind, ...] = ("two-tower", "ranker")
CARD_FILE = "card.json"


class Parent(BaseModel):
    """The two-tower that a training went on from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    """Registry version."""
    variant: str
    config: dict[str, Any]
    """Configuration of the first of the line, which was trained from scratch."""
    epochs: int
    """Epochs that were best for that one."""


class ModelCard(BaseModel):
    """Where a model version comes from: enough to train it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    variant: str
    """Shared by the models that were made for each other."""
    dataset: str
    data_version: str
    """SHA-256 of the data set's content."""
    trained_on: TrainingRows
    """Which of its events, and what had been learnt before."""
    events: KnownEvents | None = None
    """All of its events, to find them again when more have come; none for models of before this was kept."""
    parent: Parent | None = None
    """What the training went on from; none if it began from scratch."""
    config: dict[str, Any]
    """Resolved configuration, seeds included."""
    scaling: dict[str, Any]
    """Workers and what connected them."""
    history_length: int
    """Events of a user's history that the features carry."""
    feature_fingerprints: dict[str, str]
    """Feature view to the hash of its definition."""
    evaluation: Evaluation | None
    """How the model did; of a refitted one, how the same configuration did on held-out events."""
    curve: list[dict[str, float]]
    """One entry per epoch."""
    best_epoch: int
    """The epoch whose weights were kept, from 0."""
    git_commit: str
    versions: dict[str, str]
    """Of the libraries."""

    @property
    def from_scratch(self) -> tuple[dict[str, Any], int]:
        """The configuration, and for how many epochs, of a training from scratch that stands for this one."""
        return (self.config, self.best_epoch + 1) if self.parent is None else (self.parent.config, self.parent.epochs)

    @property
    def seen_events(self) -> KnownEvents:
        """The events that the model may have seen. Raises TowerlineError if the card does not say which."""
        if self.events is None:
            raise TowerlineError(
                f"the {self.kind} of variant {self.variant} was registered by code (commit {self.git_commit}) that did "
                f"not keep which events of data set {self.dataset!r} it has seen; train from scratch"
            )
        return self.events

    @property
    def learnt(self) -> Learnt:
        """What the model has learnt. Raises TowerlineError where `seen_events` does."""
        return Learnt(known=self.seen_events, rows=self.trained_on)


def read_card(folder: Path) -> ModelCard:
    """The card, if this code computes the features that it names."""
    card = ModelCard.model_validate_json((folder / CARD_FILE).read_bytes())
    _require_same_features(card)
    return card


def require_stored_features(card: ModelCard, stored: Mapping[str, str]) -> None:
    """Raise TowerlineError, naming both, unless an online store holds the feature views that a model was trained on.

    `stored`: view to fingerprint, nothing if the store is empty.
    """
    how = f"`python -m jobs.serve_models --dataset {card.dataset}` publishes the data set with them"
    if not stored:
        raise TowerlineError(f"the online store of data set {card.dataset!r} is empty; {how}")
    for view in feature_fingerprints(card.history_length):
        if stored.get(view) != card.feature_fingerprints.get(view):
            raise TowerlineError(f"{_trained_on(card, view)}, the online store holds {stored.get(view)}; {how}")


def curve_of(history: Sequence[BaseModel]) -> list[dict[str, float]]:
    """The epochs of a training as flat numbers."""
    rows = [epoch.model_dump() for epoch in history]
    return [{**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]} for row in rows]


def _require_same_features(card: ModelCard) -> None:
    current = feature_fingerprints(card.history_length) | ranker_fingerprints()
    for view, fingerprint in card.feature_fingerprints.items():
        if current.get(view) != fingerprint:
            raise TowerlineError(
                f"{_trained_on(card, view)}, this code computes {current.get(view)}; train again, or serve with the "
                f"code of commit {card.git_commit}"
            )


def _trained_on(card: ModelCard, view: str) -> str:
    return (
        f"the {card.kind} of data set {card.dataset!r} was trained on feature view {view!r} with fingerprint "
        f"{card.feature_fingerprints.get(view)}"
    )
