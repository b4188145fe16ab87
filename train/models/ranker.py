"""The ranking model: DCN-v2 crosses over user, item, history and retrieval-score features of each candidate.

Wang et al., "DCN V2: Improved Deep & Cross Network" (WWW 2021). The network's output is added to a scaled retrieval
score and starts at zero, so an untrained ranker keeps the retrieval order.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from train.models.candidate_features import CANDIDATE_FEATURES, RETRIEVAL_SCORE, USER_FEATURES
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
    """Share of deep activations and of item id embeddings dropped during training."""


@dataclass(frozen=True)
class RankerInputs:
    """B users with K candidates each."""

    user_attributes_BA: Tensor
    """int32 attribute codes."""
    user_features_BF: Tensor
    """float32, in the order of `USER_FEATURES`."""
    candidates_BK: Tensor
    """int64 item codes; `UNKNOWN` where a list is shorter than K."""
    candidate_features_BKF: Tensor
    """float32, in the order of `CANDIDATE_FEATURES`, then those of the sources."""

    def __getitem__(self, rows: Tensor) -> "RankerInputs":
        return RankerInputs(*(tensor[rows] for tensor in self._tensors()))

    def __len__(self) -> int:
        return len(self.candidates_BK)

    def to(self, device: torch.device) -> "RankerInputs":
        """The same inputs on another device."""
        return RankerInputs(*(tensor.to(device) for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.user_attributes_BA, self.user_features_BF, self.candidates_BK, self.candidate_features_BKF


@dataclass(frozen=True)
class RankingBatch:
    """One rank's share of a global batch of candidate lists."""

    inputs: RankerInputs
    positive_B: Tensor
    """int64: place of the chosen item in its candidate list."""
    scale: float
    """Turns the sum of this rank's losses into its part of the global batch's mean."""

    def to(self, device: torch.device) -> "RankingBatch":
        """The same batch on another device."""
        return RankingBatch(self.inputs.to(device), self.positive_B.to(device), self.scale)


class Ranker(nn.Module):
    """Scores candidates; `forward` is the listwise training loss, `score` is what ranking uses."""

    item_attributes_IA: Tensor
    item_seen_I1: Tensor
    user_range_4F: Tensor
    candidate_range_4F: Tensor

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
        self.register_buffer("item_attributes_IA", item_attributes_IA)
        self.register_buffer("item_seen_I1", torch.zeros(vocabulary.num_items + 1, 1))
        self.register_buffer("user_range_4F", _unknown_range(len(USER_FEATURES)))
        self.register_buffer("candidate_range_4F", _unknown_range(candidate_width))

    def describe_training(self, inputs: RankerInputs, positives: Tensor) -> None:
        """Take from all training lists the range of every dense feature, and the items that were ever chosen."""
        present = inputs.candidates_BK != UNKNOWN
        self.user_range_4F.copy_(_range(inputs.user_features_BF))
        self.candidate_range_4F.copy_(_range(inputs.candidate_features_BKF[present]))
        self.item_seen_I1[inputs.candidates_BK.gather(1, positives.unsqueeze(1))] = 1.0

    def forward(self, batch: RankingBatch) -> Tensor:
        """Softmax cross-entropy of the chosen item among its candidates (ListNet's top-one loss), scaled."""
        logits_BK = self.score(batch.inputs)
        return functional.cross_entropy(logits_BK, batch.positive_B, reduction="sum") * batch.scale

    def score(self, inputs: RankerInputs) -> Tensor:
        """Logits (B, K); -inf where there is no candidate."""
        first_BKW = self._first_layer(inputs)
        crossed_BKW = first_BKW
        for layer in self.crosses:
            crossed_BKW = first_BKW * layer(crossed_BKW) + crossed_BKW
        mixed_BK: Tensor = self.output(torch.cat([crossed_BKW, self.deep(first_BKW)], dim=2)).squeeze(2)
        retrieval_BK = inputs.candidate_features_BKF[:, :, RETRIEVAL_SCORE]
        logits_BK = mixed_BK + self.score_scale * retrieval_BK
        return logits_BK.masked_fill(inputs.candidates_BK == UNKNOWN, -torch.inf)

    def _first_layer(self, inputs: RankerInputs) -> Tensor:
        num_candidates = inputs.candidates_BK.shape[1]
        seen_BK1 = functional.embedding(inputs.candidates_BK, self.item_seen_I1)
        if self.training:
            seen_BK1 = seen_BK1 * (torch.rand_like(seen_BK1) >= self.config.dropout)
        item_BKD = self.item(inputs.candidates_BK) * seen_BK1
        content_ID = self.item_attribute(self.item_attributes_IA).sum(dim=1)
        content_BKD = functional.embedding(inputs.candidates_BK, content_ID)
        user_BD = self.user_attribute(inputs.user_attributes_BA).sum(dim=1)
        user_BF = torch.cat([user_BD, _standardized(inputs.user_features_BF, self.user_range_4F)], dim=1)
        user_BKF = user_BF.unsqueeze(1).expand(-1, num_candidates, -1)
        candidate_BKF = _standardized(inputs.candidate_features_BKF, self.candidate_range_4F)
        return torch.cat([user_BKF, candidate_BKF, item_BKD, content_BKD], dim=2)


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
