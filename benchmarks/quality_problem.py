"""A data set under a protocol, as the files that a system's process reads (see `benchmarks.peers.contract`)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from data.dataset import Dataset
from data.features import with_sequence
from data.offline.store import write_frame
from data.schema import EVENT_TIME, ITEM_ID, SEQUENCE, SPLIT, USER_ID, VALUE
from data.splits import FOLD_IN, TEST, TRAIN, VALIDATION
from train.cases import Cases, cases
from train.protocols import EvaluationProtocol
from train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Problem:
    """What every system is given to solve."""

    name: str
    dataset: Dataset
    protocol: EvaluationProtocol
    examples: Path
    """Of the data set, for our models."""
    root: Path
    """Folder of all problems of this data set."""

    @property
    def folder(self) -> Path:
        """All that belongs to it, under a name that changes with the data and the protocol."""
        return self.root / f"{self.protocol.hash}-{self.dataset.manifest.data_version[:12]}"

    @property
    def events(self) -> Path:
        """A file for each split: train.parquet, …"""
        return self.folder / "splits"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Codes of the whole catalogue."""
        events = self.dataset.events()
        return Vocabulary.build(events, self.dataset.items(), self.dataset.users(), events[VALUE])

    def cases(self, split: str) -> Cases:
        """The questions, by our evaluator."""
        return cases(self.protocol, self.dataset.events(), self.dataset.users(), self.vocabulary, split=split)

    def prepare(self) -> None:
        """Write the files, unless they are there."""
        if self.events.exists():
            return
        assigned = self.protocol.assign(with_sequence(self.dataset.events()))
        part = self.events.with_suffix(".part")
        for name in (TRAIN, VALIDATION, FOLD_IN, TEST):
            write_frame(_as_peers_read(assigned.filter(pl.col(SPLIT) == name)), part / f"{name}.parquet")
        part.replace(self.events)


def _as_peers_read(events: pl.DataFrame) -> pl.DataFrame:
    """`benchmarks.peers.contract.EVENT_COLUMNS`."""
    return events.select(
        pl.col(USER_ID).alias("user"),
        pl.col(ITEM_ID).alias("item"),
        pl.col(EVENT_TIME).dt.epoch("us").alias("time"),
        pl.col(SEQUENCE).alias("order"),
        pl.col(VALUE).alias("value"),
    )
