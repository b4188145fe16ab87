"""A data set under a protocol, as the files that a system's process reads (see `benchmarks.peers.contract`)."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from data.dataset import Dataset
from data.offline.store import (
    ADDED_WHEN_READ,
    ITEMS_FILE,
    MANIFEST_FILE,
    USERS_FILE,
    read_examples,
    read_feature_manifest,
    split_by_date,
    write_bucket,
    write_frame,
)
from data.schema import EVENT_TIME, ITEM_ID, SEQUENCE, SPLIT, USER_ID, VALUE
from data.splits import TEST, TRAIN, VALIDATION
from train.cases import Cases, cases
from train.protocols import EvaluationProtocol
from train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Problem:
    """What every system is given to solve."""

    name: str
    dataset: Dataset
    protocol: EvaluationProtocol
    built: Path
    """The data set's examples, whatever their split."""
    root: Path
    """Folder of all problems of this data set."""

    @property
    def folder(self) -> Path:
        """All that belongs to it, under a name that changes with the data, their features and the protocol."""
        return self.root / f"{self.protocol.hash}-{self.built.parent.name[:8]}-{self.built.name}"

    @property
    def events(self) -> Path:
        """train.parquet, validation.parquet and test.parquet."""
        return self.folder / "events"

    @property
    def examples(self) -> Path:
        """The examples, split by the protocol, for our models."""
        return self.folder / "examples"

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
        if (self.folder / MANIFEST_FILE).exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        split = self.protocol.assign(read_examples(self.built))
        for name in (TRAIN, VALIDATION, TEST):
            write_frame(_as_peers_read(split.filter(pl.col(SPLIT) == name)), self.events / f"{name}.parquet")
        self._write_examples(split)
        # The last file to appear says that all are there.
        shutil.copy(self.examples / MANIFEST_FILE, self.folder / MANIFEST_FILE)

    def _write_examples(self, split: pl.DataFrame) -> None:
        manifest = read_feature_manifest(self.built)
        stored = split.drop(ADDED_WHEN_READ, strict=False)
        write_bucket(self.examples, "bucket-00000", split_by_date(stored, manifest.partitioning))
        for file in (USERS_FILE, ITEMS_FILE):
            shutil.copy(self.built / file, self.examples / file)
        ours = {"protocol": self.protocol.words, "protocol_hash": self.protocol.hash}
        text = manifest.model_copy(update=ours).model_dump_json(indent=2)
        (self.examples / MANIFEST_FILE).write_text(text)


def _as_peers_read(events: pl.DataFrame) -> pl.DataFrame:
    """`benchmarks.peers.contract.EVENT_COLUMNS`."""
    return events.select(
        pl.col(USER_ID).alias("user"),
        pl.col(ITEM_ID).alias("item"),
        pl.col(EVENT_TIME).dt.epoch("us").alias("time"),
        pl.col(SEQUENCE).alias("order"),
        pl.col(VALUE).alias("value"),
    )
