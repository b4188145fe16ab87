"""Attention from each candidate to the user's history: what of it speaks for, or against, this candidate.

Target attention as in DIN (Zhou et al., "Deep Interest Network", KDD 2018), with scaled dot products and several heads
(Vaswani et al., 2017). An event is its item with its place, age, value and type. A head's logit adds to the dot product
the cosine of the two items' retrieval vectors, times a learnt sharpness: retrieval has learnt from all events which
items are alike, the ranker sees only those after T1.
"""

import torch
from torch import Tensor, nn

from train.encoding import UserBatch
from train.models.two_tower import AGE_BINS, age_bin
from train.vocabulary import UNKNOWN, Vocabulary


class HistoryAttention(nn.Module):
    """H heads over the last L events; a user without events gets zeros."""

    longest_age: Tensor

    def __init__(self, dim: int, heads: int, length: int, dropout: float, vocabulary: Vocabulary) -> None:
        """`dim` (D) is the width of the items' embeddings, a multiple of `heads`; `length` is L."""
        super().__init__()
        self.heads, self.length = heads, length
        self.position = nn.Embedding(length, dim)
        self.age = nn.Embedding(AGE_BINS, dim)
        self.value = nn.Embedding(len(vocabulary.value_edges) + 2, dim, padding_idx=UNKNOWN)
        self.event_type = nn.Embedding(len(vocabulary.event_types) + 1, dim, padding_idx=UNKNOWN)
        for table in (self.position, self.age, self.value, self.event_type):
            nn.init.normal_(table.weight, std=0.05)
        self.candidate_norm, self.event_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.sharpness_H = nn.Parameter(torch.full((heads,), 4.0))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("longest_age", torch.tensor(torch.inf))

    def describe_training(self, users: UserBatch) -> None:
        """An event that lies further back than any in the training lists will count as that far back."""
        self.longest_age.copy_(users.history_ages_BL.max())

    def forward(self, candidates_BKD: Tensor, events_BLD: Tensor, users: UserBatch, cosines_BKL: Tensor) -> Tensor:
        """What each candidate finds in the history (B, K, D), from embeddings of items and their cosines.

        One further event, of which nothing is known, is always there: a candidate that no event speaks of looks at it.
        """
        batch, num_candidates, dim = candidates_BKD.shape
        key_BLHE, value_BLHE = self._events(events_BLD, users).chunk(2, dim=3)
        query_BKHE = self.query(self.candidate_norm(candidates_BKD)).view(batch, num_candidates, self.heads, -1)
        logits_BHKL = torch.einsum("bkhe,blhe->bhkl", query_BKHE, key_BLHE) / query_BKHE.shape[3] ** 0.5
        logits_BHKL = logits_BHKL + self.sharpness_H[:, None, None] * cosines_BKL.unsqueeze(1)
        absent_BL = users.history_BL == UNKNOWN
        logits_BHKL = logits_BHKL.masked_fill(absent_BL[:, None, None, :], -torch.inf)
        nothing_BHK1 = torch.zeros_like(logits_BHKL[:, :, :, :1])
        weights_BHKL = torch.cat([logits_BHKL, nothing_BHK1], dim=3).softmax(dim=3)[:, :, :, :-1]
        return torch.einsum("bhkl,blhe->bkhe", weights_BHKL, value_BLHE).reshape(batch, num_candidates, dim)

    def _events(self, events_BLD: Tensor, users: UserBatch) -> Tensor:
        """Keys and values (B, L, H, 2 E) of the events."""
        batch, length, dim = events_BLD.shape
        context_BLD = self.position.weight[self.length - length :]
        context_BLD = context_BLD + self.age(age_bin(users.history_ages_BL.clamp(max=self.longest_age)))
        context_BLD = context_BLD + self.value(users.history_values_BL.int())
        context_BLD = context_BLD + self.event_type(users.history_types_BL.int())
        # Whole events are dropped, not single features: that costs 1/D of the random numbers.
        kept_BL1 = self.dropout(torch.ones_like(events_BLD[:, :, :1]))
        known_BLD: Tensor = self.key_value(self.event_norm(events_BLD + context_BLD)) * kept_BL1
        return known_BLD.view(batch, length, self.heads, 2 * dim // self.heads)
