"""The models that can be searched: how each is trained, and where a search looks if nothing else is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from train.loop import TrainingTask
from train.models.ensemble import CandidatesConfig
from train.ranking import RankingConfig, RankingTask, RankingTaskConfig
from train.retrieval import RetrievalConfig, RetrievalTask, RetrievalTaskConfig
from tune.config import SearchConfig
from tune.dimensions import Choices, Dimension, Range
from tune.space import checked

ModelConfig = RetrievalConfig | RankingConfig
TaskConfig = RetrievalTaskConfig | RankingTaskConfig

_LENGTH = {
    "fit.epochs": "a trial lasts search.max_epochs",
    "fit.patience": "a trial is stopped early by how it compares with the others",
    "fit.metric": "trials are compared by it",
    "fit.mode": "trials are compared by it",
}
_LISTS = "the candidate lists are made with it before the first trial"
_LABELS = "it says what is to be learnt, not how"


@dataclass(frozen=True)
class Searchable:
    """One model."""

    build_task: Callable[[Any], TrainingTask]
    """What a trial trains, from a `TaskConfig`."""
    space: Mapping[str, Dimension]
    """Searched if the search names no space."""
    fixed: Mapping[str, str]
    """Dotted names that no search may change, and why."""


_RATES: dict[str, Dimension] = {
    "learning_rate": Range(low=1e-3, high=5e-3, log=True),
    "weight_decay": Range(low=1e-3, high=1e-1, log=True),
}

SEARCHABLE: dict[type[ModelConfig], Searchable] = {
    RetrievalConfig: Searchable(
        RetrievalTask,
        {**_RATES, "two_tower.dropout": Range(low=0.1, high=0.4), "two_tower.embedding_dim": Choices(choices=(48, 64))},
        _LENGTH,
    ),
    RankingConfig: Searchable(
        RankingTask,
        {**_RATES, "ranker.dropout": Range(low=0.1, high=0.4), "ranker.hidden_dim": Choices(choices=(32, 48, 64))},
        {
            **_LENGTH,
            "past_share": _LISTS,
            "num_candidates": _LISTS,
            "sources": _LISTS,
            **{f"candidates.{name}": _LISTS for name in CandidatesConfig.model_fields},
            "ranker.heads.like_min_value": _LABELS,
            "ranker.heads.like_event_types": _LABELS,
            "ranker.heads.learn": _LABELS,
        },
    ),
}


def space_of(search: SearchConfig, config: ModelConfig) -> dict[str, Dimension]:
    """Where a search from `config` looks, checked against it.

    Raises:
        TowerlineError: `config` does not admit the space; names the field and what is wrong with it.
    """
    searchable = SEARCHABLE[type(config)]
    return checked(search.space or searchable.space, config, searchable.fixed)
