"""Hyperparameter search on Ray Tune, for every model there is: Optuna suggests, ASHA stops what does not pay.

A search has a folder, `storage/name`. Called again with the same name it goes on where it was, and one that came to
its end is read:

    outcome.json   the trials and the seconds of a search that came to its end
    state/         what Tune needs to go on (`tune.snapshot`)
    trainings/     a folder per trial, as any training has one

All but the outcome is deleted at the end.
"""

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import ray.tune

from cluster.errors import TowerlineError
from train.tracking import TrackingTarget
from tune.algorithms import BEST, Halving, searcher
from tune.config import SearchConfig
from tune.models import ModelConfig, TaskConfig, space_of
from tune.outcome import OUTCOME_FILE, SearchOutcome, outcome_of, read_outcome, write_outcome
from tune.recorder import Budget, Progress, Recorder
from tune.resources import concurrent_trials, trial_resources
from tune.runs import Runs
from tune.snapshot import Snapshots, write_state_often
from tune.space import around, start
from tune.trial import RUNNING_SUFFIX, Trial, Trials


def search_model(
    task: TaskConfig,
    search: SearchConfig,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Progress | None = None,
) -> SearchOutcome[Any]:
    """Try configurations near `task.config` and return the best by its `fit.metric` on the validation events.

    `name` must change with all that decides the outcome. Each trial is a run in MLflow under one parent. `progress`
    hears of every trial after each of its epochs and at its end. Needs a Ray session, unless the search is done.

    Raises:
        TowerlineError: the space does not fit `task.config`, the cluster has no room for a trial, every trial failed,
            or none came to its first epoch in time.
    """
    done = finished_search(task.config, name=name, storage=storage)
    if done is not None:
        return done
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, fit, metric = storage.absolute() / name, task.config.fit, _metric(task.config)
    distributed = search.scaling.backend != "none"
    trials = Trials(task, metric, fit.mode, search.max_epochs, search.scaling, folder / "trainings")
    scheduler = Halving(search.max_epochs)
    tune_config = _tune_config(search, task.config, scheduler)
    snapshots = Snapshots(folder)
    resumed = _made_ready(folder, snapshots, trials.storage)
    params = search.model_dump(mode="json", exclude_none=True)
    runs = Runs(tracking, params, metric=metric, name=name) if tracking else None
    with runs or nullcontext():
        if runs is not None and not resumed:
            runs.keep_only([])
        recorder = Recorder(
            scheduler,
            search.max_epochs,
            snapshots=snapshots,
            trainings=trials.storage if distributed else None,
            resumed=resumed,
            runs=runs,
            progress=progress,
        )
        trainable = ray.tune.with_resources(ray.tune.with_parameters(Trial, trials=trials), trial_resources(search))
        _run(trainable, tune_config, _run_config(search, folder, recorder), resumed=resumed)
        outcome = outcome_of(task.config, metric, fit.mode, recorder.end(), recorder.seconds)
        if outcome is None:
            snapshots.forget()
            raise _nothing_found(search, recorder, folder)
    write_outcome(folder, outcome)
    _empty(folder)
    return outcome


def _tune_config(search: SearchConfig, config: ModelConfig, scheduler: Halving) -> ray.tune.TuneConfig:
    space = space_of(search, config)
    if search.algorithm != "grid":
        space = around(space, config)
    concurrent = concurrent_trials(search)
    suggesting, most = searcher(search, space, start(space, config), config.fit.mode, concurrent)
    return ray.tune.TuneConfig(
        metric=BEST,
        mode=config.fit.mode,
        num_samples=most,
        search_alg=suggesting,
        scheduler=scheduler,
        reuse_actors=search.scaling.backend == "none",
    )


def _run_config(search: SearchConfig, folder: Path, recorder: Recorder) -> ray.tune.RunConfig:
    return ray.tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        callbacks=[recorder],
        stop=Budget(recorder, search.time_budget_s),
        checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
        failure_config=ray.tune.FailureConfig(max_failures=search.scaling.max_failures),
        verbose=0,
    )


def finished_search(config: ModelConfig, *, name: str, storage: Path) -> SearchOutcome[Any] | None:
    """What the search of this `name` from `config` gave, if it came to its end. Needs no Ray."""
    return read_outcome(storage.absolute() / name, config, _metric(config), config.fit.mode)


def _metric(config: ModelConfig) -> str:
    if config.fit.metric is None:
        raise TowerlineError("fit.metric is not set, so trials cannot be compared; set it, for example to ndcg@10")
    return config.fit.metric


def _made_ready(folder: Path, snapshots: Snapshots, trainings: Path) -> bool:
    """Whether the search in `folder` can be gone on with; if not, the folder is empty."""
    if snapshots.put_back():
        for left in trainings.glob(f"*{RUNNING_SUFFIX}"):
            left.unlink()
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return False


def _empty(folder: Path) -> None:
    """Only the outcome is of use when a search is done."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != OUTCOME_FILE:
            path.unlink()


def _run(trainable: Any, tune_config: ray.tune.TuneConfig, run_config: ray.tune.RunConfig, *, resumed: bool) -> None:
    """Run the trials, or those that are left."""
    # What goes wrong in a trial is said by the search, in one line; its traceback is in the trial's folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    write_state_often()
    if not resumed:
        ray.tune.Tuner(trainable, tune_config=tune_config, run_config=run_config).fit()
        return
    folder = f"{run_config.storage_path}/{run_config.name}"
    tuner = ray.tune.Tuner.restore(folder, trainable=trainable, resume_unfinished=True)
    # It comes back with what was pickled when the search began; that has no one to tell and knows an older cluster.
    restored: Any = tuner._local_tuner
    restored._tune_config, restored._run_config = tune_config, run_config
    tuner.fit()


def _nothing_found(search: SearchConfig, recorder: Recorder, folder: Path) -> TowerlineError:
    failed = [trial for trial in recorder.outcomes.values() if trial.state == "failed"]
    if len(failed) == len(recorder.outcomes) and failed:
        return TowerlineError(
            f"all {len(failed)} trials of the search failed, the first: {failed[0].error}; see {folder}"
        )
    return TowerlineError(
        f"no trial came to the end of an epoch within search.time_budget_s = {search.time_budget_s:g}; raise it"
    )
