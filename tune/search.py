"""Hyperparameter search for the two-tower: Ray Tune, Optuna's TPE sampler, ASHA to stop what does not pay."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
import ray.tune
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from cluster.errors import TowerlineError
from train.communicator import SingleProcess
from train.loop import EpochResult, FitConfig, TrainingState, fit
from train.retrieval import RetrievalConfig, RetrievalTask, RetrievalTaskConfig
from train.tracking import TrackedRun, TrackingTarget, start_run
from tune.space import RetrievalSpace, apply, sample_of

logger = logging.getLogger(__name__)

METRIC = "ndcg@10"


class SearchConfig(BaseModel):
    """How much to search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_trials: PositiveInt = 5
    """Trials; the first one tries the configuration as it is."""
    max_epochs: PositiveInt = 3
    """Epochs of a trial that ASHA lets live."""
    concurrent_trials: PositiveInt = 2
    """Trials at a time, one CPU each."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the sampler."""
    space: RetrievalSpace = RetrievalSpace()
    """What may change."""


@dataclass(frozen=True)
class TrialOutcome:
    """One trial."""

    sample: dict[str, Any]
    curve: list[float]
    """NDCG@10 on the validation events after each epoch; empty if the trial failed."""


@dataclass(frozen=True)
class SearchOutcome:
    """What the search found."""

    config: RetrievalConfig
    """The best trial's."""
    trials: list[TrialOutcome]
    """In the order of their start."""
    best: int
    """Number of the best trial, from 0."""


def search_retrieval(
    task: RetrievalTaskConfig,
    search: SearchConfig,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[int, TrialOutcome], None] | None = None,
) -> SearchOutcome:
    """Try configurations near `task.config` and return the best by NDCG@10 on the validation events.

    Each trial is a run in MLflow under one parent. Needs a Ray session.

    Raises:
        TowerlineError: every trial failed.
        ValidationError: the space holds what `task.config` does not admit.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # What goes wrong in a trial is said here, in one line; its traceback is in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    sampler = OptunaSearch(
        space=search.space.around(task.config).distributions(),
        metric=METRIC,
        mode="max",
        seed=search.seed,
        points_to_evaluate=[sample_of(task.config)],
    )
    with _parent_run(tracking, search) as parent:
        recorder = _Recorder(parent, progress)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(_trial, task=task, max_epochs=search.max_epochs), {"cpu": 1}
            ),
            tune_config=ray.tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=search.num_trials,
                search_alg=ConcurrencyLimiter(sampler, max_concurrent=search.concurrent_trials),
                scheduler=ASHAScheduler(max_t=search.max_epochs, grace_period=1, reduction_factor=2),
                reuse_actors=True,
            ),
            run_config=ray.tune.RunConfig(name=name, storage_path=str(storage), callbacks=[recorder], verbose=0),
        )
        with recorder:
            tuner.fit()
    outcomes = list(recorder.outcomes.values())
    measured = [number for number, outcome in enumerate(outcomes) if outcome.curve]
    if not measured:
        raise TowerlineError(f"all {search.num_trials} trials of the search failed; see {storage / name}")
    best = max(measured, key=lambda number: max(outcomes[number].curve))
    return SearchOutcome(apply(task.config, outcomes[best].sample), outcomes, best)


def _trial(sample: dict[str, Any], task: RetrievalTaskConfig, max_epochs: int) -> None:
    """Train one configuration in this process and report after each epoch."""

    def report(result: EpochResult, _: TrainingState) -> None:
        ray.tune.report({METRIC: result.metrics[METRIC], "loss": result.loss, "epoch": result.epoch})

    config = apply(task.config, sample).model_copy(
        update={"fit": FitConfig(epochs=max_epochs, metric=METRIC, seed=task.config.fit.seed)}
    )
    fit(RetrievalTask(replace(task, config=config)), SingleProcess(), config.fit, report)


@contextmanager
def _parent_run(tracking: TrackingTarget | None, search: SearchConfig) -> Iterator[TrackingTarget | None]:
    """Where the trials' runs go: under a run of the search."""
    if tracking is None:
        yield None
        return
    with start_run(tracking, search.model_dump(mode="json")) as run:
        yield tracking.model_copy(update={"parent_run_id": run.run_id})


class _Recorder(ray.tune.Callback):
    """Remembers the trials' curves and writes them to MLflow, from the process that searches."""

    def __init__(self, tracking: TrackingTarget | None, progress: Callable[[int, TrialOutcome], None] | None) -> None:
        self.outcomes: dict[str, TrialOutcome] = {}
        self._tracking = tracking
        self._progress = progress
        self._runs: dict[str, tuple[TrackedRun, ExitStack]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into the experiment's folder; that copy records nothing."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runs of trials that were cut off."""
        for _, stack in self._runs.values():
            with suppress(BaseException if error is None else type(error)):
                stack.__exit__(kind, error, trace)
        self._runs.clear()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Open the trial's run."""
        sample = dict(trial.config)
        self.outcomes[trial.trial_id] = TrialOutcome(sample, [])
        if self._tracking is not None:
            stack = ExitStack()
            target = self._tracking.model_copy(update={"run_name": f"trial {len(self.outcomes)}"})
            self._runs[trial.trial_id] = (stack.enter_context(start_run(target, sample)), stack)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Add an epoch to the curve."""
        self.outcomes[trial.trial_id].curve.append(result[METRIC])
        if trial.trial_id in self._runs:
            metrics = {METRIC: result[METRIC], "loss": result["loss"]}
            self._runs[trial.trial_id][0].log_metrics(metrics, step=result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the run of a trial that ended or was stopped."""
        self._close(trial)
        if self._progress is not None:
            self._progress(list(self.outcomes).index(trial.trial_id) + 1, self.outcomes[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the run of a trial that failed; it takes no part in the choice."""
        reason = _reason(trial)
        logger.warning("trial %s failed: %s", trial.config, reason)
        self._close(trial, RuntimeError(reason))
        self.outcomes[trial.trial_id].curve.clear()

    def _close(self, trial: Trial, error: Exception | None = None) -> None:
        if trial.trial_id in self._runs:
            _, stack = self._runs.pop(trial.trial_id)
            stack.__exit__(None if error is None else type(error), error, None)


def _reason(trial: Trial) -> str:
    """The last line of the traceback that a failed trial left."""
    written = Path(trial.error_file).read_text().strip() if trial.error_file else "it left no traceback"
    return written.splitlines()[-1]
