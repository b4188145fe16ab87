"""Which events a model is fitted on, as an object: what trains it, and what its card says it has seen."""

import polars as pl
from pydantic import BaseModel, ConfigDict

from data.features import with_sequence
from data.schema import SEQUENCE, SPLIT
from data.splits import TEST, TRAIN, VALIDATION
from train.protocols import AnyProtocol, EvaluationProtocol, LeaveOneOut


class TrainingRows(BaseModel):
    """Some splits of a protocol, or the part of them between two moments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: AnyProtocol = LeaveOneOut()
    splits: tuple[str, ...] = (TRAIN,)
    """Splits to learn from."""
    since: int | None = None
    """Only events with this `sequence` or a greater one; all if none."""
    before: int | None = None
    """Only events with a smaller `sequence`; all if none."""

    def __str__(self) -> str:
        splits = " and ".join(self.splits)
        moments = "".join(
            f", {word} event {moment}"
            for word, moment in (("from", self.since), ("before", self.before))
            if moment is not None
        )
        return f"{splits} of {self.protocol.kind} {self.protocol.hash}{moments}"

    def select(self, events: pl.DataFrame) -> pl.DataFrame:
        """The chosen ones of events that have a `sequence`, in the total order, with the protocol's `split`."""
        chosen = pl.col(SPLIT).is_in(self.splits)
        if self.since is not None:
            chosen &= pl.col(SEQUENCE) >= self.since
        if self.before is not None:
            chosen &= pl.col(SEQUENCE) < self.before
        return self.protocol.assign(events).filter(chosen)

    def overlap(self, protocol: EvaluationProtocol, events: pl.DataFrame) -> int:
        """How many of the test events of `protocol` are among the chosen ones. `events`: all of the data set."""
        ordered = with_sequence(events)
        asked = protocol.assign(ordered).filter(pl.col(SPLIT) == TEST)
        return asked.join(self.select(ordered), on=SEQUENCE, how="semi").height


TRAIN_SPLIT = TrainingRows()
ALL_EVENTS = TrainingRows(splits=(TRAIN, VALIDATION, TEST))
