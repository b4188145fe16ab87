"""Which events a model is fitted on, as an object: what trains it, and what its card says it has seen."""

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from data.features import with_sequence
from data.known_events import KnownEvents
from data.schema import SEQUENCE, SOURCE_ROW, SPLIT
from data.splits import TEST, TRAIN, VALIDATION
from train.protocols import AnyProtocol, EvaluationProtocol, LeaveOneOut

REPLAY_SEED = 0


class TrainingRows(BaseModel):
    """Some splits of a protocol, or the part of them between two moments, or the part that is new to a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: AnyProtocol = LeaveOneOut()
    splits: tuple[str, ...] = (TRAIN,)
    """Splits to learn from."""
    since: int | None = None
    """Only events with this `sequence` or a greater one; all if none."""
    before: int | None = None
    """Only events with a smaller `sequence`; all if none."""
    learnt: "Learnt | None" = None
    """What the model that training goes on from has learnt already, which is not learnt again."""
    replay: NonNegativeFloat = 0.0
    """Events learnt already that are rehearsed, for each new one."""

    def __str__(self) -> str:
        splits = " and ".join(self.splits)
        moments = "".join(
            f", {word} event {moment}"
            for word, moment in (("from", self.since), ("before", self.before))
            if moment is not None
        )
        beside = f", after {self.learnt}" if self.learnt else ""
        replayed = f", {self.replay:g} of those again for each new one" if self.replay else ""
        return f"{splits} of {self.protocol.kind} {self.protocol.hash}{moments}{beside}{replayed}"

    def select(self, events: pl.DataFrame) -> pl.DataFrame:
        """The chosen ones of events that have a `sequence`, in the total order, with the protocol's `split`.

        Without those that were learnt already.
        """
        chosen = self._chosen(events)
        return chosen if self.learnt is None else chosen.filter(~pl.col(SOURCE_ROW).is_in(self.learnt.rows_in(events)))

    def rehearsed(self, events: pl.DataFrame) -> pl.DataFrame:
        """Those learnt already that are learnt once more: `replay` for each that `select` gives, drawn at random."""
        if self.learnt is None or not self.replay:
            return self._chosen(events).clear()
        known = events.filter(pl.col(SOURCE_ROW).is_in(self.learnt.rows_in(events)))
        old = self.protocol.assign(events).join(known.select(SOURCE_ROW), on=SOURCE_ROW, how="semi")
        old = old.filter(pl.col(SPLIT).is_in([TRAIN, *self.splits])).sort(SEQUENCE)
        count = min(old.height, round(self.replay * self.select(events).height))
        drawn = np.random.default_rng(REPLAY_SEED).choice(old.height, count, replace=False, shuffle=False)
        return old[np.sort(drawn)]

    def seen(self, events: pl.DataFrame) -> pl.DataFrame:
        """All that a model trained on these rows has learnt, by this training and by those it went on from."""
        chosen = pl.col(SOURCE_ROW).is_in(self._chosen(events)[SOURCE_ROW].implode())
        if self.learnt is not None:
            chosen |= pl.col(SOURCE_ROW).is_in(self.learnt.rows_in(events))
        return self.protocol.assign(events).filter(chosen)

    def overlap(self, protocol: EvaluationProtocol, events: pl.DataFrame) -> int:
        """How many of the test events of `protocol` such a model has seen. `events`: all of the data set."""
        ordered = with_sequence(events)
        asked = protocol.assign(ordered).filter(pl.col(SPLIT) == TEST)
        return asked.join(self.seen(ordered), on=SEQUENCE, how="semi").height

    def _chosen(self, events: pl.DataFrame) -> pl.DataFrame:
        chosen = pl.col(SPLIT).is_in(self.splits)
        if self.since is not None:
            chosen &= pl.col(SEQUENCE) >= self.since
        if self.before is not None:
            chosen &= pl.col(SEQUENCE) < self.before
        return self.protocol.assign(events).filter(chosen)


class Learnt(BaseModel):
    """What a model has learnt, as it is found in its data set after that has grown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    known: KnownEvents
    """The data set as it was then."""
    rows: TrainingRows
    """Which of those events, with all that the model itself went on from."""

    def __str__(self) -> str:
        return f"({self.rows}) of data version {self.known.label}"

    def rows_in(self, events: pl.DataFrame) -> pl.Series:
        """Their source rows, as a list in one row. `events`: those of the data set as it is now."""
        return self.rows.seen(with_sequence(events.filter(self.known.are_known)))[SOURCE_ROW].implode()


TrainingRows.model_rebuild()
TRAIN_SPLIT = TrainingRows()
ALL_EVENTS = TrainingRows(splits=(TRAIN, VALIDATION, TEST))
