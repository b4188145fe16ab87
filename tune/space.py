"""Search spaces: ranges over a `RetrievalConfig`, checked against it before any trial starts."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import ray.tune
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"{bounds[0]} to {bounds[1]} is no range; give (low, high)")
    return bounds


def _positive(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] > 0:
        raise ValueError(f"a logarithmic range cannot begin at {bounds[0]}; begin above 0")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
LogRange = Annotated[Range, AfterValidator(_positive)]


class RetrievalSpace(BaseModel):
    """What the search may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: LogRange = (1e-3, 5e-3)
    """Drawn log-uniformly."""
    weight_decay: LogRange = (1e-3, 1e-1)
    """Drawn log-uniformly."""
    dropout: Range = (0.1, 0.4)
    """Drawn uniformly."""
    embedding_dim: Annotated[tuple[int, ...], Field(min_length=1)] = (48, 64)
    """One of these."""

    @model_validator(mode="after")
    def _corners_are_configs(self) -> Self:
        self._require_configs(RetrievalConfig(two_tower=TwoTowerConfig(attention_heads=1)))
        return self

    def around(self, config: RetrievalConfig) -> "RetrievalSpace":
        """The space in which a search from `config` goes on: widened where it must be to hold `config`.

        Raises:
            ValidationError: the space holds a value that `config` does not admit.
        """
        start = sample_of(config)
        space = RetrievalSpace(
            learning_rate=_widened(self.learning_rate, start["learning_rate"]),
            weight_decay=_widened(self.weight_decay, start["weight_decay"]),
            dropout=_widened(self.dropout, start["dropout"]),
            embedding_dim=tuple(sorted({*self.embedding_dim, start["embedding_dim"]})),
        )
        space._require_configs(config)
        return space

    def _require_configs(self, config: RetrievalConfig) -> None:
        """Every bound and every choice must make a config; so does then all that lies between."""
        for dim in self.embedding_dim:
            for bound in (0, 1):
                sample = {name: getattr(self, name)[bound] for name in ("learning_rate", "weight_decay", "dropout")}
                apply(config, sample | {"embedding_dim": dim})

    def distributions(self) -> dict[str, Any]:
        """The space as Ray Tune wants it."""
        return {
            "learning_rate": ray.tune.loguniform(*self.learning_rate),
            "weight_decay": ray.tune.loguniform(*self.weight_decay),
            "dropout": ray.tune.uniform(*self.dropout),
            "embedding_dim": ray.tune.choice(list(self.embedding_dim)),
        }


def _widened(bounds: tuple[float, float], value: float) -> tuple[float, float]:
    return min(bounds[0], value), max(bounds[1], value)


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
        ValidationError: the config does not admit a value of the sample.
    """
    values = config.model_dump()
    values |= {"learning_rate": sample["learning_rate"], "weight_decay": sample["weight_decay"]}
    values["two_tower"] |= {"dropout": sample["dropout"], "embedding_dim": sample["embedding_dim"]}
    return RetrievalConfig.model_validate(values)
