"""A data set as trainings find it: what a protocol makes of its events, and where runs and records of them are kept.

Every training has a name made from all that decides its outcome. One that was interrupted goes on where it was;
`Workplace.forget` clears the way for a new one.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from cluster.provenance import git_commit
from cluster.settings import Settings
from data.dataset import Dataset
from data.features import with_sequence
from data.offline.store import read_examples, read_feature_manifest
from data.splits import FOLD_IN, TEST, TRAIN, VALIDATION
from train.cases import Cases, cases
from train.incremental import Origin
from train.loop import EpochResult
from train.protocols import AnyProtocol, LeaveOneOut
from train.scaling import Scaling
from train.tracking import TrackingTarget
from train.trainer import delete_run
from train.training_rows import ALL_EVENTS, TrainingRows
from train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Workplace:
    """One data set, its examples, the protocol that splits them, and where trainings run and are recorded."""

    settings: Settings
    dataset: Dataset
    examples_folder: Path
    """What `data.offline.pipeline.ensure_examples` gave."""
    scaling: Scaling
    progress: Callable[[EpochResult], None] | None = None
    """Called after each epoch."""
    protocol: AnyProtocol = field(default_factory=LeaveOneOut)
    """What trains and what is asked for."""
    origin: Origin | None = None
    """What retrieval trainings go on from; its protocol is that of the workplace then."""
    _names: set[str] = field(default_factory=set)

    @cached_property
    def examples(self) -> pl.DataFrame:
        """One row per event, with the protocol's split."""
        return self.protocol.assign(read_examples(self.examples_folder))

    @cached_property
    def known_events(self) -> pl.DataFrame:
        """The events that features may be computed from: all but those that the protocol keeps secret."""
        return self.protocol.visible(self.protocol.assign(with_sequence(self.dataset.events())))

    @property
    def train_split(self) -> TrainingRows:
        """The rows that the protocol lets a model learn from; of an origin, those that are new to it."""
        return self.origin.rows(TRAIN) if self.origin else TrainingRows(protocol=self.protocol)

    @property
    def all_events(self) -> TrainingRows:
        """All rows; of an origin, those that are new to it."""
        return self.origin.rows(TRAIN, FOLD_IN, VALIDATION, TEST) if self.origin else ALL_EVENTS

    def cases(self, vocabulary: Vocabulary) -> Cases:
        """The questions of the test events."""
        length = read_feature_manifest(self.examples_folder).history_length
        return cases(self.protocol, self.dataset.events(), self.dataset.users(), vocabulary, history_length=length)

    def forget(self) -> None:
        """Delete the checkpoints of the trainings here: what they gave is in the registry."""
        for name in self._names:
            delete_run(name, self.storage)

    @property
    def storage(self) -> Path:
        """Folder of the runs."""
        return self.settings.home / "runs"

    def tracking(self, run_name: str) -> TrackingTarget:
        """Where a step is recorded."""
        return TrackingTarget(
            tracking_uri=self.settings.tracking_uri,
            experiment=self.dataset.name,
            run_name=run_name,
            tags={"git_commit": git_commit(), "data_version": self.dataset.manifest.data_version},
        )

    def name_of(self, step: str, decisive: dict[str, Any]) -> str:
        """A name that changes with whatever changes the outcome, so that only the same training is gone on with."""
        decisive |= {
            "examples": str(self.examples_folder),
            "scaling": self.scaling.decisive,
            "commit": git_commit(),
        }
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{self.dataset.name}-{step}-{digest}"
        self._names.add(name)
        return name
