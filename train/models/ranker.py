"""The ranking model: DCN-v2 crosses over user, item, history and retrieval-score features of each candidate.

Wang et al., "DCN V2: Improved Deep & Cross Network" (WWW 2021). The network's output is added to a scaled retrieval
score and starts at zero, so an untrained ranker keeps the retrieval order. It can attend from each candidate to the
user's history (`train.models.history_attention`) and learn, beside which candidate is chosen, whether that one is liked
and its value (`train.models.ranker_heads`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from train.encoding import UserBatch
from train.models.candidate_features import CANDIDATE_FEATURES, RETRIEVAL_SCORE, USER_FEATURES
from train.models.history_attention import HistoryAttention
from train.models.ranker_heads import ChosenEvents, Heads, HeadsConfig
from train.vocabulary import UNKNOWN, Vocabulary


class RankerConfig(BaseModel):
    """The shape of the ranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: PositiveInt = 8
    """Width of the attribute and item id embeddings."""
    cross_layers: PositiveInt = 2
    """DCN-v2 cross layers."""
    hidden_dim: PositiveInt = 48
    """Width of the deep part."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of deep activations, of events and of item id embeddings dropped during training."""
    history_heads: NonNegativeInt = 0
    """Heads of the attention from each candidate to the history; 0: none. `embedding_dim` must be a multiple."""
    history_length: PositiveInt = 32
    """Events of the history that are attended to, newest last; at most those that the two-tower reads."""
    loss: Literal["listwise_softmax", "pointwise_logistic"] = "listwise_softmax"
    """What the choice is learnt by: softmax over the candidates, or chosen against not chosen for each of them."""
    heads: HeadsConfig = HeadsConfig()
    """What is learnt beside the choice."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.history_heads and self.embedding_dim % self.history_heads:
            raise ValueError(
                f"embedding_dim is {self.embedding_dim}, expected a multiple of history_heads, {self.history_heads}"
            )
        return self


@dataclass(frozen=True)
class RankerInputs:
    """B users with K candidates each."""

    users: UserBatch
    """Histories and attributes."""
    user_features_BF: Tensor
    """float32, in the order of `USER_FEATURES`."""
    candidates_BK: Tensor
    """int64 item codes; `UNKNOWN` where a list is shorter than K."""
    candidate_features_BKF: Tensor
    """float32, in the order of `CANDIDATE_FEATURES`, then those of the sources."""
    item_directions_ID: Tensor
    """float32: of every item code, the unit vector in the retrieval model that found the candidates."""

    def __getitem__(self, rows: Tensor) -> "RankerInputs":
        """Some of the users."""
        lists = (self.user_features_BF[rows], self.candidates_BK[rows], self.candidate_features_BKF[rows])
        return RankerInputs(self.users[rows], *lists, self.item_directions_ID)

    def __len__(self) -> int:
        return len(self.candidates_BK)

    def to(self, device: torch.device) -> "RankerInputs":
        """The same inputs on another device."""
        tensors = (self.user_features_BF, self.candidates_BK, self.candidate_features_BKF, self.item_directions_ID)
        return RankerInputs(self.users.to(device), *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class RankingBatch:
    """One rank's share of a global batch of candidate lists."""

    inputs: RankerInputs
    positive_B: Tensor
    """int64: place of the chosen item in its candidate list."""
    scale: float
    """Turns the sum of this rank's losses into its part of the global batch's mean."""
    chosen: ChosenEvents | None = None
    """The events in which those items were chosen; none without heads that learn from them."""

    def to(self, device: torch.device) -> "RankingBatch":
        """The same batch on another device."""
        chosen = None if self.chosen is None else self.chosen.to(device)
        return RankingBatch(self.inputs.to(device), self.positive_B.to(device), self.scale, chosen)


@dataclass(frozen=True)
class RankerOutputs:
    """What the network says of B users' K candidates."""

    choice_BK: Tensor
    """Logits: their softmax is the chance to be the one that is chosen, if one of them is; -inf where there is no
    candidate."""
    like_BK: Tensor | None
    """Logits of a like, if this one is chosen; None where that was not learnt."""
    value_BK: Tensor | None
    """Expected value of the event, if this one is chosen; None where that was not learnt."""


class Ranker(nn.Module):
    """Scores candidates; `forward` is the training loss, `score` is what ranking uses."""

    item_attributes_IA: Tensor
    item_seen_I1: Tensor
    user_range_4F: Tensor
    candidate_range_4F: Tensor
    choice_slope: Tensor
    like_line_2: Tensor

    def __init__(
        self,
        config: RankerConfig,
        vocabulary: Vocabulary,
        item_attributes_IA: Tensor,
        candidate_width: int = len(CANDIDATE_FEATURES),
    ) -> None:
        """`item_attributes_IA`: int32 attribute codes of every item code, row 0 being `UNKNOWN`.

        `candidate_width`: number of dense features of a candidate, those of the sources included.
        """
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.user_attribute = nn.Embedding(len(vocabulary.user_attributes) + 1, dim, padding_idx=UNKNOWN)
        self.item_attribute = nn.Embedding(len(vocabulary.item_attributes) + 1, dim, padding_idx=UNKNOWN)
        self.item = nn.Embedding(vocabulary.num_items + 1, dim, padding_idx=UNKNOWN)
        for table in (self.user_attribute, self.item_attribute, self.item):
            nn.init.normal_(table.weight, std=0.05)
        width = 3 * dim + len(USER_FEATURES) + candidate_width
        if config.history_heads:
            width += dim
            self.history = HistoryAttention(
                dim, config.history_heads, config.history_length, config.dropout, vocabulary
            )
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.deep = nn.Sequential(
            nn.Linear(width, config.hidden_dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
        )
        self.output = nn.Linear(width + config.hidden_dim, 1, bias=False)
        self.score_scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.output.weight)
        self.heads = Heads(config.heads, width + config.hidden_dim, vocabulary)
        if config.loss == "pointwise_logistic":
            self.choice_offset = nn.Parameter(torch.zeros(()))
        self.register_buffer("item_attributes_IA", item_attributes_IA)
        self.register_buffer("item_seen_I1", torch.zeros(vocabulary.num_items + 1, 1))
        self.register_buffer("user_range_4F", _unknown_range(len(USER_FEATURES)))
        self.register_buffer("candidate_range_4F", _unknown_range(candidate_width))
        self.register_buffer("choice_slope", torch.ones(()))
        self.register_buffer("like_line_2", torch.tensor([1.0, 0.0]))

    def describe_training(self, inputs: RankerInputs, positives: Tensor, chosen: ChosenEvents | None = None) -> None:
        """Take from all training lists the range of every dense feature, the items that were ever chosen, and what the
        heads must know of their labels."""
        present = inputs.candidates_BK != UNKNOWN
        self.user_range_4F.copy_(_range(inputs.user_features_BF))
        self.candidate_range_4F.copy_(_range(inputs.candidate_features_BKF[present]))
        self.item_seen_I1[inputs.candidates_BK.gather(1, positives.unsqueeze(1))] = 1.0
        if self.config.history_heads:
            self.history.describe_training(inputs.users)
        if self.config.loss == "pointwise_logistic":
            others = present.sum() - len(inputs)
            self.choice_offset.data.copy_(torch.log(len(inputs) / others.clamp(min=1)))
        if chosen is not None:
            self.heads.describe_training(chosen)

    def forward(self, batch: RankingBatch) -> Tensor:
        """The loss of the choice and the weighted losses of the heads, scaled so that the mean over ranks is the global
        batch's mean.

        The choice is learnt by the softmax cross-entropy of the chosen item among its candidates (ListNet's top-one
        loss; Cao et al., ICML 2007), or by the sum of the log losses of "was chosen" over the candidates.
        """
        mixed_BKM = self._mixed(batch.inputs)
        losses_B = self._choice_losses(self._choice(mixed_BKM, batch.inputs), batch.positive_B)
        if batch.chosen is not None:
            chosen_BM = mixed_BKM[torch.arange(len(mixed_BKM), device=mixed_BKM.device), batch.positive_B]
            losses_B = losses_B + self.heads.losses(chosen_BM, batch.chosen)
        return losses_B.sum() * batch.scale

    def score(self, inputs: RankerInputs) -> Tensor:
        """Ranking scores (B, K); -inf where there is no candidate.

        The logit of the choice, plus `heads.like_in_score` times the log of the chance of a like.
        """
        mixed_BKM = self._mixed(inputs)
        scores_BK = self._choice(mixed_BKM, inputs)
        like_BK = self.heads.like_logits(mixed_BKM) if self.config.heads.like_in_score else None
        if like_BK is not None:
            slope, offset = self.like_line_2
            chance_BK = functional.logsigmoid(slope * like_BK + offset)
            scores_BK = scores_BK + self.config.heads.like_in_score * chance_BK
        return scores_BK

    def outputs(self, inputs: RankerInputs) -> RankerOutputs:
        """All that the network says of the candidates."""
        mixed_BKM = self._mixed(inputs)
        choice_BK = self._choice(mixed_BKM, inputs)
        return RankerOutputs(choice_BK, self.heads.like_logits(mixed_BKM), self.heads.values(mixed_BKM))

    def calibrate(self, choice_slope: float, like_line: tuple[float, float]) -> None:
        """Keep what makes the probabilities hold: inverse temperature of the choice, slope and offset of the like."""
        self.choice_slope.fill_(choice_slope)
        self.like_line_2.copy_(torch.tensor(like_line))

    def calibrated(self, outputs: RankerOutputs) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K) of the choice and of the like whose probabilities hold."""
        slope, offset = self.like_line_2
        return (
            outputs.choice_BK * self.choice_slope,
            None if outputs.like_BK is None else slope * outputs.like_BK + offset,
        )

    def _choice_losses(self, choice_BK: Tensor, positive_B: Tensor) -> Tensor:
        if self.config.loss == "listwise_softmax":
            return functional.cross_entropy(choice_BK, positive_B, reduction="none")
        # What is no candidate has the logit -inf and no loss, but the gradient of its log loss would be undefined.
        present_BK = choice_BK != -torch.inf
        logits_BK = torch.where(present_BK, choice_BK, 0.0) + self.choice_offset
        is_chosen_BK = functional.one_hot(positive_B, choice_BK.shape[1]).to(logits_BK)
        losses_BK = functional.binary_cross_entropy_with_logits(logits_BK, is_chosen_BK, reduction="none")
        return (losses_BK * present_BK).sum(dim=1)

    def _choice(self, mixed_BKM: Tensor, inputs: RankerInputs) -> Tensor:
        """Logits (B, K) of the choice."""
        retrieval_BK = inputs.candidate_features_BKF[:, :, RETRIEVAL_SCORE]
        logits_BK: Tensor = self.output(mixed_BKM).squeeze(2) + self.score_scale * retrieval_BK
        return logits_BK.masked_fill(inputs.candidates_BK == UNKNOWN, -torch.inf)

    def _mixed(self, inputs: RankerInputs) -> Tensor:
        """What crosses and deep part make of each candidate (B, K, M)."""
        first_BKW = self._first_layer(inputs)
        crossed_BKW = first_BKW
        for layer in self.crosses:
            crossed_BKW = first_BKW * layer(crossed_BKW) + crossed_BKW
        return torch.cat([crossed_BKW, self.deep(first_BKW)], dim=2)

    def _first_layer(self, inputs: RankerInputs) -> Tensor:
        num_candidates = inputs.candidates_BK.shape[1]
        content_ID = self.item_attribute(self.item_attributes_IA).sum(dim=1)
        item_BKD, content_BKD = self._item(inputs.candidates_BK), functional.embedding(inputs.candidates_BK, content_ID)
        user_BD = self.user_attribute(inputs.users.attributes_BA).sum(dim=1)
        user_BF = torch.cat([user_BD, _standardized(inputs.user_features_BF, self.user_range_4F)], dim=1)
        user_BKF = user_BF.unsqueeze(1).expand(-1, num_candidates, -1)
        candidate_BKF = _standardized(inputs.candidate_features_BKF, self.candidate_range_4F)
        parts = [user_BKF, candidate_BKF, item_BKD, content_BKD]
        if self.config.history_heads:
            parts.append(self._attended(inputs, item_BKD + content_BKD, content_ID))
        return torch.cat(parts, dim=2)

    def _item(self, codes: Tensor) -> Tensor:
        """Id embeddings (..., D) of items that were ever chosen; zeros for the others and for those dropped."""
        seen = functional.embedding(codes, self.item_seen_I1)
        if self.training:
            seen = seen * (torch.rand_like(seen) >= self.config.dropout)
        embeddings: Tensor = self.item(codes) * seen
        return embeddings

    def _attended(self, inputs: RankerInputs, candidates_BKD: Tensor, content_ID: Tensor) -> Tensor:
        users = inputs.users.recent(self.config.history_length)
        history_BL = users.history_BL.long()
        events_BLD = self._item(history_BL) + functional.embedding(history_BL, content_ID)
        directions_BKD = functional.embedding(inputs.candidates_BK, inputs.item_directions_ID)
        cosines_BKL = directions_BKD @ functional.embedding(history_BL, inputs.item_directions_ID).transpose(1, 2)
        attended_BKD: Tensor = self.history(candidates_BKD, events_BLD, users, cosines_BKL)
        return attended_BKD


def _unknown_range(num_features: int) -> Tensor:
    """The range that leaves every value as it is."""
    return torch.tensor([[0.0], [1.0], [-torch.inf], [torch.inf]]).repeat(1, num_features)


def _range(values_NF: Tensor) -> Tensor:
    """Mean, standard deviation, lowest and highest of each column: (4, F)."""
    deviation_F = values_NF.std(dim=0, correction=0).clamp(min=1e-3)
    return torch.stack([values_NF.mean(dim=0), deviation_F, values_NF.amin(dim=0), values_NF.amax(dim=0)])


def _standardized(values: Tensor, range_4F: Tensor) -> Tensor:
    """Standardised by what training saw, and never outside of it: years of silence look like the longest one known."""
    mean_F, deviation_F, low_F, high_F = range_4F
    standardized: Tensor = (torch.clamp(values, low_F, high_F) - mean_F) / deviation_F
    return standardized
