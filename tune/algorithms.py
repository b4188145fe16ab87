"""How the next trial is chosen (Optuna) and which ones are stopped early (ASHA), on Ray Tune.

A trial that failed says so in its last result, without a value of the metric: it teaches the sampler to stay away,
and is kept out of what ASHA compares with.
"""

from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from tune.config import SearchConfig
from tune.dimensions import Dimension
from tune.space import Sample, grid

BEST = "best"
"""Key in a trial's results: the best value of the metric so far."""
FAILED = "failed"
"""Key in a trial's last result: why it failed; empty in all others."""


def searcher(
    search: SearchConfig, space: dict[str, Dimension], first: Sample, mode: str, concurrent: int
) -> tuple[ConcurrencyLimiter, int]:
    """What suggests the trials, and how many they are.

    Raises:
        TowerlineError: no grid of at most `search.num_trials` points can be made of the space.
    """
    points, trials = [first], search.num_trials
    sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=search.seed)
    if search.algorithm == "random":
        sampler = optuna.samplers.RandomSampler(seed=search.seed)
    if search.algorithm == "grid":
        points = grid(space, search.num_trials)
        trials = len(points)
    suggesting = _Suggesting(
        space={name: dimension.distribution() for name, dimension in space.items()},
        metric=BEST,
        mode=mode,
        sampler=sampler,
        points_to_evaluate=points,
    )
    return _AtATime(suggesting, max_concurrent=concurrent), trials


class _AtATime(ConcurrencyLimiter):
    """So many trials at a time as the cluster has room for now, whatever it had when the search was interrupted."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state | {"max_concurrent": self.max_concurrent})


class _Suggesting(OptunaSearch):
    """Optuna's samplers; to them a failed trial is one that was pruned before its first value, the worst there is."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The last result, which holds the best value, is all that the samplers learn from."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, None if result and result.get(FAILED) else result, error)


class Halving(ASHAScheduler):
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020)."""

    def __init__(self, max_epochs: int) -> None:
        super().__init__(max_t=max_epochs, grace_period=1, reduction_factor=2)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result[FAILED]:
            return self.STOP
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if not result.get(FAILED):
            super().on_trial_complete(tune_controller, trial, result)
