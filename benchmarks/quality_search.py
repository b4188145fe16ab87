"""The search for each system's settings: the same sampler, the same number of trials, for ours as for the peers.

Trials are judged by NDCG@10 on the validation events of the oldest cut-off, which no test of any cut-off asks for.
The best settings and all trials are kept in `benchmarks/settings/<data set>.toml`, which the plain command reads.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tomlkit

from benchmarks.quality_systems import Settings, System
from cluster.errors import TowerlineError
from cluster.files import write_atomically

SETTINGS = Path(__file__).with_name("settings")
SEED = 0
RANDOM_TRIALS = 5
"""Drawn at random before the sampler looks at what was good."""


@dataclass(frozen=True)
class Trial:
    """Settings that were tried."""

    settings: Settings
    score: float
    """NDCG@10 on the validation events."""
    seconds: float


@dataclass(frozen=True)
class Found:
    """What was found for one system."""

    settings: Settings
    trials: tuple[Trial, ...] = ()
    """All, in order; none: nobody searched."""


def search(system: System, trials: int, attempt: Callable[[Settings], Trial]) -> Found:
    """Try the start, then what TPE proposes; the best of `trials` trials, the first of equals."""
    if not system.space:
        return Found(system.start)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=RANDOM_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(system.start)
    space = {name: dimension.distribution() for name, dimension in system.space.items()}
    tried: list[Trial] = []
    for _ in range(trials):
        proposed = study.ask(space)
        tried.append(attempt(dict(proposed.params)))
        study.tell(proposed, tried[-1].score)
    best = max(tried, key=lambda trial: trial.score)
    return Found(best.settings, tuple(tried))


def with_base(system: System, settings: Settings, found: Mapping[str, Found]) -> Settings:
    """What a run is told: the settings of a system, by name with those of what it is built on."""
    return {system.above: found[system.above].settings, system.name: settings} if system.above else settings


def read_settings(dataset: str, systems: Sequence[System], folder: Path = SETTINGS) -> dict[str, Found]:
    """The stored settings by system; the start of a system that nobody has searched for on this data set.

    Raises:
        TowerlineError: the file cannot be read, or names what the system has no such setting of.
    """
    path = folder / f"{dataset}.toml"
    try:
        stored = tomllib.loads(path.read_text()) if path.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise TowerlineError(f"{path}: {error}; search again with SEARCH=1") from error
    return {system.name: _found(path, system, stored.get(system.name)) for system in systems}


def write_settings(dataset: str, found: dict[str, Found], words: str, folder: Path = SETTINGS) -> Path:
    """Keep what was found, and what was tried for it; systems that were not searched for keep what they had."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{dataset}.toml"
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    if not document.body:
        document.add(
            tomlkit.comment(f"Found by `make bench-quality SEARCH=1 DATASET={dataset}`; read by the plain one.")
        )
        document.add(tomlkit.comment(words))
    for name, each in found.items():
        if each.trials:
            document[name] = _table(each)
    write_atomically(path, tomlkit.dumps(document))
    return path


def _table(found: Found) -> dict[str, Any]:
    trials = [
        {"ndcg@10": round(trial.score, 6), "seconds": round(trial.seconds, 1), "settings": trial.settings}
        for trial in found.trials
    ]
    return {"settings": found.settings, "trials": trials}


def _found(path: Path, system: System, stored: dict[str, Any] | None) -> Found:
    if stored is None:
        return Found(system.start)
    if set(stored["settings"]) != set(system.space):
        raise TowerlineError(
            f"{path}: [{system.name}.settings] names {', '.join(sorted(stored['settings']))}, expected "
            f"{', '.join(sorted(system.space))}; search again with SEARCH=1"
        )
    trials = (Trial(each["settings"], each["ndcg@10"], each["seconds"]) for each in stored["trials"])
    return Found(stored["settings"], tuple(trials))
