"""What a search remembers while it runs: its trials' curves, told to whoever waits and written to MLflow."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.experiment import Trial

from cluster.errors import TowerlineError
from tune.algorithms import FAILED, Halving
from tune.outcome import TrialOutcome
from tune.runs import Runs
from tune.snapshot import Snapshots
from tune.trial import wait_for_trainings

logger = logging.getLogger(__name__)

Progress = Callable[[TrialOutcome], None]
SECONDS_TO_END = 60.0
"""So long trainings of ended trials have to let go of their workers."""


class Recorder(ray.tune.Callback):
    """Follows a search in the process that searches.

    Its state, ASHA's among it, which Tune does not keep, is part of what Tune writes.
    """

    def __init__(
        self,
        scheduler: Halving,
        max_epochs: int,
        *,
        snapshots: Snapshots,
        trainings: Path | None,
        resumed: bool,
        runs: Runs | None,
        progress: Progress | None,
    ) -> None:
        """`trainings`: folder of the trials' trainings, if they are distributed.

        `resumed`: Tune is to read a state that it wrote before.
        """
        self.outcomes: dict[int, TrialOutcome] = {}
        self._to_be_restored = resumed
        self._scheduler, self._max_epochs = scheduler, max_epochs
        self._snapshots, self._runs, self._progress = snapshots, runs, progress
        self._trainings = trainings
        self._started, self._spent_before = time.monotonic(), 0.0
        self._trials_started: dict[int, float] = {}

    def __reduce__(self) -> tuple[type[ray.tune.Callback], tuple[()]]:
        """Tune pickles its callbacks once, into the experiment's folder; nothing of this one is of use there."""
        return ray.tune.Callback, ()

    @property
    def seconds(self) -> float:
        """Wall time of the search so far, that before an interruption included."""
        return self._spent_before + time.monotonic() - self._started

    def get_state(self) -> dict[str, Any]:
        """For Tune to write."""
        return {"outcomes": dict(self.outcomes), "seconds": self.seconds, "scheduler": dict(vars(self._scheduler))}

    def set_state(self, state: dict[str, Any]) -> None:
        """What Tune wrote before the search was interrupted."""
        self.outcomes = state["outcomes"]
        self._spent_before, self._started = state["seconds"], time.monotonic()
        vars(self._scheduler).update(state["scheduler"])
        self._to_be_restored = False
        if self._runs is not None:
            self._runs.keep_only(self.outcomes)

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Tune begins anew, in silence, when it cannot read its state: refuse that."""
        if self._to_be_restored:
            raise TowerlineError(f"the state of a search cannot be read; delete {self._snapshots.folder} to begin anew")

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Tune has written its state, if it was time to.

        When trials have ended and no other one runs, their workers are waited for: the next trial needs their CPUs, and
        so does what follows the search, after which Tune would kill them and leave their placement group.
        """
        if trials and trials[0].storage is not None:
            self._snapshots.take(Path(trials[0].storage.experiment_driver_staging_path))
        ended = all(trial.status in {Trial.TERMINATED, Trial.ERROR} for trial in trials)
        if self._trainings is not None and ended:
            wait_for_trainings(self._trainings, SECONDS_TO_END)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial begins, or begins anew."""
        number = _number(trial)
        self.outcomes[number] = TrialOutcome(number=number, sample=dict(trial.config))
        self._trials_started[number] = time.monotonic()
        if self._runs is not None:
            self._runs.open(number, dict(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Add an epoch to the curve, or the reason why there is none."""
        number = _number(trial)
        before = self.outcomes[number]
        if result[FAILED]:
            self._fail(before, result[FAILED])
            return
        seconds = time.monotonic() - self._trials_started[number]
        self._tell(before.model_copy(update={"curve": [*before.curve, result["value"]], "seconds": seconds}))
        if self._runs is not None:
            self._runs.log(number, result["value"], result["loss"], result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial ended or was stopped."""
        self._end(_number(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial broke and begins again, from its last checkpoint."""
        logger.warning("trial %d broke and is gone on with: %s", _number(trial), _reason(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial broke; it takes no part in the choice."""
        self._fail(self.outcomes[_number(trial)], _reason(trial))

    def end(self) -> list[TrialOutcome]:
        """The search is over, for the trials too that the end of its time cut off; in the order of their numbers."""
        for number in list(self.outcomes):
            self._end(number)
        return [self.outcomes[number] for number in sorted(self.outcomes)]

    def _end(self, number: int) -> None:
        outcome = self.outcomes[number]
        if outcome.state != "running":
            return
        state = "finished" if len(outcome.curve) >= self._max_epochs else "stopped"
        self._tell(outcome.model_copy(update={"state": state}))
        if self._runs is not None:
            self._runs.close(number)

    def _fail(self, outcome: TrialOutcome, reason: str) -> None:
        if outcome.state == "failed":
            return
        self._tell(outcome.model_copy(update={"state": "failed", "curve": [], "error": reason}))
        if self._runs is not None:
            self._runs.close(outcome.number, failed=True)

    def _tell(self, outcome: TrialOutcome) -> None:
        self.outcomes[outcome.number] = outcome
        if self._progress is not None:
            self._progress(outcome)


class Budget(ray.tune.Stopper):
    """Ends a search when its time is over, over all its parts."""

    def __init__(self, recorder: Recorder, seconds: float | None) -> None:
        self._recorder, self._budget = recorder, seconds

    def __reduce__(self) -> tuple[type[ray.tune.Stopper], tuple[()]]:
        """As the recorder's."""
        return ray.tune.stopper.NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is ended."""
        return False

    def stop_all(self) -> bool:
        """Whether the time is over."""
        return self._budget is not None and self._recorder.seconds > self._budget


def _number(trial: Trial) -> int:
    """Tune tags a trial with its number, which stays the same when a search is gone on with."""
    return int(str(trial.experiment_tag).partition("_")[0])


def _reason(trial: Trial) -> str:
    """The last line of the traceback that a broken trial left."""
    written = Path(trial.error_file).read_text().strip() if trial.error_file else "it left no traceback"
    return written.splitlines()[-1]
