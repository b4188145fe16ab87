"""Search spaces: ranges over a `RetrievalConfig`, checked against it before any trial starts."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import ray.tune
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from train.retrieval import RetrievalConfig


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"{bounds[0]} to {bounds[1]} is no range; give (low, high)")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class RetrievalSpace(BaseModel):
    """What the search may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: Range = (1e-3, 5e-3)
    """Drawn log-uniformly."""
    weight_decay: Range = (1e-3, 1e-1)
    """Drawn log-uniformly."""
    dropout: Range = (0.1, 0.4)
    """Drawn uniformly."""
    embedding_dim: tuple[int, ...] = (48, 64)
    """One of these."""

    @model_validator(mode="after")
    def _corners_are_configs(self) -> Self:
        for corner in (0, 1):
            apply(
                RetrievalConfig(),
                {
                    "learning_rate": self.learning_rate[corner],
                    "weight_decay": self.weight_decay[corner],
                    "dropout": self.dropout[corner],
                    "embedding_dim": self.embedding_dim[-corner],
                },
            )
        return self

    def distributions(self) -> dict[str, Any]:
        """The space as Ray Tune wants it."""
        return {
            "learning_rate": ray.tune.loguniform(*self.learning_rate),
            "weight_decay": ray.tune.loguniform(*self.weight_decay),
            "dropout": ray.tune.uniform(*self.dropout),
            "embedding_dim": ray.tune.choice(list(self.embedding_dim)),
        }


def sample_of(config: RetrievalConfig) -> dict[str, Any]:
    """The point of the space where `config` lies."""
    return {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "dropout": config.two_tower.dropout,
        "embedding_dim": config.two_tower.embedding_dim,
    }


def apply(config: RetrievalConfig, sample: Mapping[str, Any]) -> RetrievalConfig:
    """`config` with the values of a sample.

    Raises:
        ValidationError: a value is none that the config admits.
    """
    values = config.model_dump()
    values |= {"learning_rate": sample["learning_rate"], "weight_decay": sample["weight_decay"]}
    values["two_tower"] |= {"dropout": sample["dropout"], "embedding_dim": sample["embedding_dim"]}
    return RetrievalConfig.model_validate(values)
