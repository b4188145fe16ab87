"""What the training jobs share: their configuration, the workflow on a data set, and their report."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.job import explain
from cluster.reports import Report, ReportClock
from cluster.settings import Settings
from data.dataset import open_dataset
from data.offline.pipeline import ensure_examples
from jobs.console import Console
from jobs.speed import speed_figures
from train import tracking
from train.evaluation import Evaluation
from train.gate import GateConfig
from train.incremental import IncrementalConfig, Origin
from train.loop import EpochResult
from train.protocols import LEAVE_ONE_OUT, AnyProtocol
from train.ranking import RankingConfig
from train.registry import challenger_card
from train.retrieval import RetrievalConfig
from train.scaling import Scaling
from train.workflow import Workflow
from tune.config import SearchConfig
from tune.models import space_of


class Searches(BaseModel):
    """The hyperparameter searches, one for each model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retrieval: SearchConfig = SearchConfig()
    """For the two-tower."""
    ranking: SearchConfig = SearchConfig()
    """For the ranker."""


class TrainingConfig(BaseModel):
    """Everything that decides what the training jobs give, the data aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retrieval: RetrievalConfig = RetrievalConfig()
    """The two-tower."""
    ranking: RankingConfig = RankingConfig()
    """The ranker."""
    search: Searches = Searches()
    """The hyperparameter searches."""
    scaling: Scaling = Scaling()
    """Workers and what connects them."""
    incremental: IncrementalConfig = IncrementalConfig()
    """Of `train_retrieval --from`: what it changes of the two-tower's training."""
    gate: GateConfig = GateConfig()
    """What a variant must meet to become champion."""

    @model_validator(mode="after")
    def _spaces_fit_the_models(self) -> Self:
        for search, config in ((self.search.retrieval, self.retrieval), (self.search.ranking, self.ranking)):
            if search.space is not None:
                try:
                    space_of(search, config)
                except TowerlineError as error:
                    raise ValueError(str(error)) from error
        return self


def read_training_config(path: Path | None, base: TrainingConfig | None = None) -> TrainingConfig:
    """The configuration in a TOML file; what it leaves out, also of a section, is as in `base`, or its default.

    Raises:
        TowerlineError: the file is not there, is not TOML, or holds an unknown key or a value out of range.
    """
    base = base or TrainingConfig()
    if path is None:
        return base
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TowerlineError(f"{path}: {error}; see jobs/configs/training.toml for an example") from error
    try:
        return TrainingConfig.model_validate(_filled(values, base.model_dump()))
    except ValidationError as error:
        raise TowerlineError(f"{path}: {explain(error)}") from error


def _filled(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`values` over `defaults`, section by section: a section's defaults may be those of its owner."""
    sections = {
        name: _filled(values[name], default)
        for name, default in defaults.items()
        if isinstance(default, dict) and isinstance(values.get(name), dict)
    }
    return defaults | values | sections


def found_config(settings: Settings, dataset: str) -> Path | None:
    """What the last search on a data set found, if there was one."""
    path = _found_config_path(settings, dataset)
    return path if path.exists() else None


def write_found_config(settings: Settings, dataset: str, config: TrainingConfig) -> Path:
    """Keep a configuration for the trainings that follow on this data set."""
    path = _found_config_path(settings, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tomlkit.dumps(config.model_dump(mode="json", exclude_none=True)))
    return path


def plan_retrieval(
    settings: Settings, dataset: str, path: Path | None, version: str | None
) -> tuple[TrainingConfig, Origin | None]:
    """The configuration of a two-tower's training, and what it goes on from if `version` names that.

    What the file at `path` leaves out is then as the origin was trained with.

    Raises:
        TowerlineError: where `read_training_config` and `Origin.load` do, or the file is for another shape of model.
    """
    config = read_training_config(path or found_config(settings, dataset))
    if version is None:
        return config, None
    data = open_dataset(settings.home, dataset)
    origin = Origin.load(settings.tracking_uri, data, version, config.incremental.replay)
    retrieval = origin.config
    if path is not None:
        retrieval = read_training_config(path, TrainingConfig(retrieval=retrieval)).retrieval
        origin.require_same_shape(retrieval)
    return config.model_copy(update={"retrieval": config.incremental.over(retrieval)}), origin


def origin_of_challenger(settings: Settings, dataset: str) -> Origin | None:
    """What the challenger's training went on from, if it did not begin from scratch.

    Raises:
        TowerlineError: there is no challenger, or it or its origin cannot be read.
    """
    card = challenger_card(settings.tracking_uri, dataset)
    if card.parent is None:
        return None
    data = open_dataset(settings.home, dataset)
    return Origin.load(settings.tracking_uri, data, card.parent.version, card.trained_on.replay)


def require_trainable(settings: Settings, dataset: str) -> None:
    """Look at all that can be checked before Ray is started.

    Raises:
        TowerlineError: there is no such data set, or MLflow does not answer.
    """
    open_dataset(settings.home, dataset)
    tracking.connect(settings.tracking_uri)


def open_workflow(
    settings: Settings,
    dataset_name: str,
    scaling: Scaling,
    console: Console,
    *,
    protocol: AnyProtocol = LEAVE_ONE_OUT,
    origin: Origin | None = None,
) -> Workflow:
    """The workflow on a data set, whose examples are built if they are not there. Needs a Ray session.

    With an `origin`, what goes on from there is judged by its protocol.

    Raises:
        TowerlineError: there is no such data set.
    """
    dataset = open_dataset(settings.home, dataset_name)
    examples = ensure_examples(settings.home, dataset)
    if origin is not None:
        protocol = origin.protocol
    return Workflow(settings, dataset, examples, scaling, progress=console.epoch, protocol=protocol, origin=origin)


def report_of(
    clock: ReportClock,
    workflow: Workflow,
    config: TrainingConfig,
    evaluation: Evaluation,
    curves: Mapping[str, Sequence[EpochResult]],
    *,
    others: Mapping[str, float] = MappingProxyType({}),
) -> Report:
    """The report of a training that ends now; `curves`: training to its epochs; `others`: figures besides."""
    return clock.finish(
        config=config.model_dump(mode="json"),
        protocol=f"{evaluation.protocol_hash}: {evaluation.protocol}",
        data_version=workflow.dataset.manifest.data_version,
        figures={**evaluation.figures, **speed_figures(curves), **others},
    )


def _found_config_path(settings: Settings, dataset: str) -> Path:
    return settings.home / "configs" / f"{dataset}.toml"
