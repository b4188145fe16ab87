"""What a search gave: its trials, their curves, and the best of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal

from pydantic import BaseModel, ConfigDict

from cluster.files import write_atomically
from tune.space import Config, Sample, apply

OUTCOME_FILE = "outcome.json"
Mode = Literal["max", "min"]


class TrialOutcome(BaseModel):
    """One trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """From 1, in the order in which trials were suggested."""
    sample: Sample
    """What it tried."""
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    """Stopped: by ASHA or by the end of the time, before its last epoch."""
    curve: list[float] = []
    """The metric on the validation events after each epoch; empty if the trial failed."""
    seconds: float = 0.0
    """Wall time since it was started, at its last epoch."""
    error: str = ""
    """Why it failed."""

    def best(self, mode: Mode) -> float:
        """The best value of a curve that has one."""
        return max(self.curve) if mode == "max" else min(self.curve)


@dataclass(frozen=True)
class SearchOutcome(Generic[Config]):
    """A search that came to its end."""

    config: Config
    """What was searched from, with what the best trial tried."""
    metric: str
    """By which trials were compared."""
    mode: Mode
    """Whether more of it is better, or less."""
    trials: list[TrialOutcome]
    """In the order of their numbers."""
    best: TrialOutcome
    """The best trial; the first one of equals."""
    seconds: float
    """Wall time, over all its parts if it was interrupted."""


def outcome_of(
    config: Config, metric: str, mode: Mode, trials: list[TrialOutcome], seconds: float
) -> SearchOutcome[Config] | None:
    """The outcome of a search from `config`; None if no trial has a value."""
    measured = [trial for trial in trials if trial.curve]
    if not measured:
        return None
    best = (max if mode == "max" else min)(measured, key=lambda trial: trial.best(mode))
    return SearchOutcome(apply(config, best.sample), metric, mode, trials, best, seconds)


def write_outcome(folder: Path, outcome: SearchOutcome[Config]) -> None:
    """Keep what a search gave in its folder: it is done."""
    kept = {"trials": [trial.model_dump() for trial in outcome.trials], "seconds": outcome.seconds}
    write_atomically(folder / OUTCOME_FILE, json.dumps(kept, indent=1, ensure_ascii=False))


def read_outcome(folder: Path, config: Config, metric: str, mode: Mode) -> SearchOutcome[Config] | None:
    """What the search from `config` gave that came to its end in `folder`, if one did."""
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    trials = [TrialOutcome.model_validate(trial) for trial in kept["trials"]]
    return outcome_of(config, metric, mode, trials, kept["seconds"])
