"""Training that goes on: from a registered two-tower, with the events that it has not learnt, its vocabulary grown.

What trains incrementally is judged by `NewEvents`: it is asked only for what came after all that its parent may have
seen. The gate, which compares with a champion that has seen no more, asks for the same.
"""

from dataclasses import dataclass
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.schema import SPLIT
from data.splits import TEST, TRAIN, VALIDATION
from train.card import ModelCard, Parent
from train.loop import FitConfig
from train.models.retrieval import RetrievalModel
from train.protocols import NewEvents
from train.registry import load_two_tower, registered_name
from train.retrieval import RetrievalConfig
from train.training_rows import TrainingRows

SHAPE = ("embedding_dim", "attention_heads", "causal_blocks", "history_length", "inputs")
"""Settings of a two-tower that its weights are made for."""
FEWEST = 2
"""Events to learn from, and users to be asked, that a training and its evaluation need."""


class IncrementalConfig(BaseModel):
    """How a two-tower learns what is new to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: FitConfig = FitConfig(epochs=6, patience=2)
    """How long to train."""
    learning_rate: PositiveFloat = 5e-4
    """Of AdamW."""
    replay: NonNegativeFloat = 0.5
    """Events learnt already that are rehearsed for each new one, so that they are not forgotten."""

    def over(self, config: RetrievalConfig) -> RetrievalConfig:
        """The configuration of a training from scratch, changed to go on."""
        return config.model_copy(update={"fit": self.fit, "learning_rate": self.learning_rate})


@dataclass(frozen=True)
class Origin:
    """A registered two-tower to go on from."""

    version: str
    """Registry version."""
    model: RetrievalModel
    card: ModelCard
    replay: float
    """Events learnt already that are rehearsed for each new one."""
    new_events: int
    """Of the data set, those that came after all that it has seen."""

    @classmethod
    def load(cls, tracking_uri: str, dataset: Dataset, name: str, replay: float) -> Self:
        """The version of this number, or the `champion`'s or `challenger`'s two-tower.

        Raises:
            TowerlineError: there is none or it cannot be read, or the data set does not hold all it has seen.
        """
        version, model, card = load_two_tower(tracking_uri, dataset.name, name)
        seen, events = card.seen_events, dataset.events()
        origin = cls(version, model, card, replay, new_events=events.height - seen.events)
        seen.require_in(events, origin.name)
        return origin

    @property
    def name(self) -> str:
        """For people."""
        return f"version {self.version} of model {registered_name(self.card.dataset, self.card.kind)!r}"

    @property
    def parent(self) -> Parent:
        """What a card says of it."""
        config, epochs = self.card.from_scratch
        return Parent(version=self.version, variant=self.card.variant, config=config, epochs=epochs)

    @property
    def protocol(self) -> NewEvents:
        """How what goes on from here is judged."""
        return NewEvents(known=self.card.seen_events)

    @property
    def config(self) -> RetrievalConfig:
        """What it was trained with."""
        return RetrievalConfig.model_validate(self.card.config)

    def rows(self, *splits: str) -> TrainingRows:
        """What is to be learnt of some splits."""
        return TrainingRows(protocol=self.protocol, splits=splits, learnt=self.card.learnt, replay=self.replay)

    def require_same_shape(self, asked: RetrievalConfig) -> None:
        """Raise TowerlineError, naming setting and values, if `asked` is for a model of another shape."""
        for name in SHAPE:
            ours, theirs = getattr(self.config.two_tower, name), getattr(asked.two_tower, name)
            if ours != theirs:
                raise TowerlineError(
                    f"retrieval.two_tower.{name} is {theirs!r} in the configuration, and {self.name} was trained with "
                    f"{ours!r}: its weights cannot be gone on with; leave it out, or train from scratch without --from"
                )

    def plan(self, examples: pl.DataFrame) -> str:
        """What there is to learn, in words. `examples`: those of the data set, with the split of `protocol`.

        Raises:
            TowerlineError: there is too little to learn, to choose by or to ask for.
        """
        rows = self.rows(TRAIN)
        new, again = rows.select(examples).height, rows.rehearsed(examples).height
        users = {split: examples.filter(pl.col(SPLIT) == split).height for split in (VALIDATION, TEST)}
        if min(new, *users.values()) < FEWEST:
            raise TowerlineError(
                f"the {self.new_events:,} events that are new to {self.name} are too few: {new} to learn from, "
                f"{users[VALIDATION]} users to validate and {users[TEST]} to test with, {FEWEST} of each are needed; "
                "ingest more events, or train from scratch without --from"
            )
        return (
            f"from {self.name} on: {self.new_events:,} new events, {new:,} of which to learn from beside {again:,} "
            f"of those learnt before, {users[TEST]:,} users to test with"
        )
