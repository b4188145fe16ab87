"""What the ranker learns of the item that was chosen, beside that it was: whether it was liked, and its value.

A head reads what the ranker has made of a candidate, and learns from the chosen one alone, for of the others nobody
knows. So its answer is one for "if this candidate is chosen".
"""

import logging
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional

from cluster.errors import TowerlineError
from train.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Head = Literal["like", "value"]
HEADS: tuple[Head, ...] = ("like", "value")


class HeadsConfig(BaseModel):
    """What is learnt beside the choice, and what a like is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learn: tuple[Head, ...] | None = None
    """The chance that the item would be liked (classification), the value of the event (regression), both or none of
    them. Left out: those whose label varies in the training lists; named and constant is an error."""
    like_weight: PositiveFloat = 0.1
    """Of the log loss of the like, beside that of the choice."""
    value_weight: PositiveFloat = 0.1
    """Of half the squared error of the value, in standard deviations."""
    like_min_value: FiniteFloat | None = None
    """An event of this value or more is a like; none: of a value above the mean of the training lists."""
    like_event_types: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Types of the events that are likes, whatever their value; none: the value decides."""
    like_in_score: NonNegativeFloat = 0.0
    """The ranking score is the logit of the choice plus so much of log P(like): with 0 candidates are ranked by the
    chance to be chosen, with 1 by the chance to be chosen and liked."""

    @model_validator(mode="after")
    def _one_kind_of_like(self) -> Self:
        if self.like_event_types and self.like_min_value is not None:
            raise ValueError(
                f"like_min_value is {self.like_min_value:g} and like_event_types is {list(self.like_event_types)}: a "
                "like is a matter of the value or of the type; leave one out"
            )
        if self.like_in_score and "like" not in (self.learn or ()):
            raise ValueError(f'like_in_score is {self.like_in_score:g}, which needs "like" among learn')
        return self

    @property
    def asked(self) -> tuple[Head, ...]:
        """The heads that the network has."""
        return HEADS if self.learn is None else tuple(head for head in HEADS if head in self.learn)


@dataclass(frozen=True)
class ChosenEvents:
    """The B events in which the items of B lists were chosen."""

    value_B: Tensor
    """float32."""
    type_B: Tensor
    """int64: codes of their types."""

    def __getitem__(self, rows: Tensor) -> "ChosenEvents":
        return ChosenEvents(self.value_B[rows], self.type_B[rows])

    def to(self, device: torch.device) -> "ChosenEvents":
        """The same events on another device."""
        return ChosenEvents(self.value_B.to(device), self.type_B.to(device))


class Heads(nn.Module):
    """Linear heads that start at zero: the chance of a like is one half, the value is the mean."""

    learnt_2: Tensor
    like_types_T: Tensor
    like_min_value: Tensor
    value_range_4: Tensor

    def __init__(self, config: HeadsConfig, width: int, vocabulary: Vocabulary) -> None:
        """`width` (M) is that of what the ranker makes of a candidate.

        Raises:
            TowerlineError: `config.like_event_types` names a type that no event has.
        """
        super().__init__()
        self.config = config
        self.linear = nn.ModuleDict({head: nn.Linear(width, 1) for head in config.asked})
        for weights in self.linear.parameters():
            nn.init.zeros_(weights)
        self.register_buffer("like_types_T", _is_like_type(config.like_event_types, vocabulary))
        self.register_buffer("like_min_value", torch.tensor(torch.inf))
        self.register_buffer("value_range_4", torch.tensor([0.0, 1.0, -torch.inf, torch.inf]))
        self.register_buffer("learnt_2", torch.zeros(len(HEADS)))

    def describe_training(self, chosen: ChosenEvents) -> None:
        """Take from all training lists what a like is, the range of the values, and which labels vary at all.

        Raises:
            TowerlineError: `config.learn` names a head whose label is always the same.
        """
        values_B = chosen.value_B
        above_N = values_B[values_B > values_B.mean()]
        least_above = above_N.min() if len(above_N) else torch.tensor(torch.inf)
        asked = self.config.like_min_value
        self.like_min_value.copy_(least_above if asked is None else torch.tensor(asked))
        deviation = values_B.std(correction=0).clamp(min=1e-6)
        self.value_range_4.copy_(torch.stack([values_B.mean(), deviation, values_B.min(), values_B.max()]))
        for number, head in enumerate(HEADS):
            label_B = self.liked(chosen) if head == "like" else values_B
            self.learnt_2[number] = float(head in self.config.asked and _varies(head, label_B, self.config))

    def liked(self, chosen: ChosenEvents) -> Tensor:
        """float32 (B,): 1 where the item that was chosen was liked."""
        if self.config.like_event_types:
            return self.like_types_T[chosen.type_B].float()
        return (chosen.value_B >= self.like_min_value).float()

    def losses(self, chosen_BM: Tensor, chosen: ChosenEvents) -> Tensor:
        """Weighted losses (B,) of the chosen items: log loss of the like, half the squared error of the value."""
        losses_B = torch.zeros_like(chosen.value_B)
        if "like" in self.linear:
            logits_B = self.linear["like"](chosen_BM).squeeze(1)
            of_like_B = functional.binary_cross_entropy_with_logits(logits_B, self.liked(chosen), reduction="none")
            losses_B = losses_B + self.config.like_weight * self.learnt_2[0] * of_like_B
        if "value" in self.linear:
            mean, deviation = self.value_range_4[:2]
            error_B = self.linear["value"](chosen_BM).squeeze(1) - (chosen.value_B - mean) / deviation
            losses_B = losses_B + self.config.value_weight * self.learnt_2[1] * 0.5 * error_B**2
        return losses_B

    def like_logits(self, mixed_BKM: Tensor) -> Tensor | None:
        """Logits (B, K) of a like; None where that was not learnt."""
        return self.linear["like"](mixed_BKM).squeeze(2) if self.learnt_2[0] else None

    def values(self, mixed_BKM: Tensor) -> Tensor | None:
        """Expected values (B, K), never outside of what training saw; None where they were not learnt."""
        if not self.learnt_2[1]:
            return None
        mean, deviation, low, high = self.value_range_4
        return torch.clamp(mean + deviation * self.linear["value"](mixed_BKM).squeeze(2), low, high)


def _is_like_type(names: tuple[str, ...], vocabulary: Vocabulary) -> Tensor:
    """bool (T,) by code of an event type."""
    is_like_T = torch.zeros(len(vocabulary.event_types) + 1, dtype=torch.bool)
    for name in names:
        if name not in vocabulary.event_type_codes:
            known = ", ".join(vocabulary.event_types)
            raise TowerlineError(f"heads.like_event_types names {name!r}, which no event is; name some of: {known}")
        is_like_T[vocabulary.event_type_codes[name]] = True
    return is_like_T


def _varies(head: Head, label_B: Tensor, config: HeadsConfig) -> bool:
    if (label_B != label_B[0]).any():
        return True
    what = f"the ranker's label {head!r} is {label_B[0]:g} in all {len(label_B)} training lists"
    if config.learn is not None:
        change = "; change what a like is (heads.like_min_value, heads.like_event_types)" if head == "like" else ""
        raise TowerlineError(f"{what}, so there is nothing to learn{change}; leave {head!r} out of heads.learn")
    logger.warning("%s: nothing is learnt of it", what)
    return False
