"""Whom the language model re-ranks: written by the evaluation that found it to help, read when serving starts.

It lies beside the data set's found configuration, as `<TOWERLINE_HOME>/configs/<data set>.reranking.json`. There is no
other way to turn re-ranking on: the threshold comes from an evaluation, never from a guess.
"""

import logging
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from cluster.errors import TowerlineError
from cluster.files import write_atomically

logger = logging.getLogger(__name__)

HOW = "`python -m jobs.evaluate_reranking --dataset {dataset}` finds out where it helps"


class RerankingPolicy(BaseModel):
    """What an evaluation has found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(min_length=1)
    below_events: NonNegativeInt
    """Users with fewer known events are re-ranked; 0: nobody is."""
    weight: Annotated[float, Field(gt=0, le=1)]
    """Of the language model's preferences, beside the ranker's scores."""
    candidates: Annotated[int, Field(ge=2, le=100)]
    """How many of the ranker's first items are re-ranked."""
    language_model: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights that were evaluated."""
    prompt_version: str
    """Of the prompt that was evaluated."""
    protocol_hash: str
    """Of the protocol that it was measured by."""
    data_version: str
    """Of the data set that it was measured on."""
    users: PositiveInt
    """Users that were asked about."""
    evaluated: datetime
    """When the evaluation began."""
    reason: str = Field(min_length=1)
    """The finding in words, with its numbers."""


def policy_path(home: Path, dataset: str) -> Path:
    """Where the policy of a data set lies."""
    return home / "configs" / f"{dataset}.reranking.json"


def write_policy(home: Path, policy: RerankingPolicy) -> Path:
    """Keep what was found; an endpoint heeds it from its next start on."""
    path = policy_path(home, policy.dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, policy.model_dump_json(indent=2) + "\n")
    return path


def read_policy(home: Path, dataset: str) -> RerankingPolicy | None:
    """What was found for a data set; None if nobody has looked.

    Raises:
        TowerlineError: the file cannot be read, or is of another data set.
    """
    path = policy_path(home, dataset)
    again = f"{HOW.format(dataset=dataset)} and writes it anew"
    try:
        policy = RerankingPolicy.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TowerlineError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise TowerlineError(f"{path}: {field}: {first['msg']}; {again}") from error
    if policy.dataset != dataset:
        raise TowerlineError(f"{path}: dataset is {policy.dataset!r}, expected {dataset!r}; {again}")
    return policy


def policy_in_force(home: Path, dataset: str, language_model: str, prompt_version: str) -> RerankingPolicy | None:
    """The policy that serving follows with these weights (SHA-256) and this prompt; None: nobody is re-ranked.

    Whatever stands in the way is logged and never keeps an endpoint from starting.
    """
    try:
        policy = read_policy(home, dataset)
    except TowerlineError as error:
        logger.warning("cold users are not re-ranked: %s", error)
        return None
    how = HOW.format(dataset=dataset)
    if policy is None:
        logger.info("cold users are not re-ranked: no evaluation has been made; %s", how)
    elif policy.below_events == 0:
        logger.info("cold users are not re-ranked: %s", policy.reason)
    elif policy.language_model != language_model:
        logger.warning(
            "cold users are not re-ranked: the evaluation was of another language model (SHA-256 %s, here %s); %s",
            policy.language_model[:12],
            language_model[:12],
            how,
        )
    elif policy.prompt_version != prompt_version:
        logger.warning(
            "cold users are not re-ranked: the evaluation was of another prompt (%s, here %s); %s",
            policy.prompt_version,
            prompt_version,
            how,
        )
    else:
        logger.info("users with fewer than %d events are re-ranked: %s", policy.below_events, policy.reason)
        return policy
    return None
