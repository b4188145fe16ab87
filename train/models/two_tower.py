"""The two-tower retrieval model: a user vector and an item vector whose dot product is the logit.

The user tower reads the recent history, each event with its place, age, value and type, attends from the last event to
those before it and adds a recency-weighted mean; the item tower sums an id embedding with those of its attributes and
of the words of its title, so an item without events still has a vector. The user's events are read through the item
tower, which is what lets one table learn from both sides.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from train.encoding import UserBatch
from train.models.attention import CausalBlock, causal_mask
from train.vocabulary import UNKNOWN, Vocabulary

AGE_BINS = 16


class TwoTowerConfig(BaseModel):
    """The shape and the loss of the two-tower model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: PositiveInt = 64
    """Width of the towers; must be a multiple of `attention_heads`."""
    attention_heads: PositiveInt = 2
    """Heads of the attention from the last event to the history."""
    causal_blocks: NonNegativeInt = 0
    """Transformer blocks over the history below that attention; in them an event sees itself and earlier ones."""
    history_length: PositiveInt = 32
    """Events of the user's history that are read, newest last."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of history events, and of the mixed activations, dropped in the user tower during training."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of item id embeddings dropped per step, so that attributes alone learn to place an item."""
    inputs: tuple[Literal["history", "attributes", "title"], ...] = ("history", "attributes", "title")
    """What the towers read beside ids: the user's past events, the attributes of users and items, titles of items."""
    loss: Literal["full_softmax", "sampled_softmax", "in_batch_softmax"] = "full_softmax"
    """Softmax over the whole catalogue, over sampled negatives, or over the other targets of the global batch."""
    logq_correction: bool = True
    """Correct the logits of negatives for how often they are drawn; without it popular items are held down."""
    num_negatives: PositiveInt = 512
    """Negatives shared by a batch, for the sampled softmax."""
    sampling_power: NonNegativeFloat = 0.75
    """Negatives are drawn in proportion to item frequency to this power."""
    sparse_item_table: bool = False
    """Encode in a training step only the items that its batch has to do with, and update their embeddings alone: for
    catalogues of which a batch sees little. Not with the full softmax, which scores every item."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.embedding_dim % self.attention_heads:
            raise ValueError(
                f"embedding_dim is {self.embedding_dim}, expected a multiple of attention_heads, {self.attention_heads}"
            )
        return self

    @model_validator(mode="after")
    def _sparse_where_items_are_sampled(self) -> Self:
        if self.sparse_item_table and self.loss == "full_softmax":
            raise ValueError(
                "sparse_item_table is true and loss is 'full_softmax', which scores every item in each step; "
                "set loss to 'sampled_softmax' or 'in_batch_softmax', or leave sparse_item_table out"
            )
        return self


@dataclass(frozen=True)
class RetrievalBatch:
    """One rank's share of a global batch."""

    users: UserBatch
    target_B: Tensor
    """int64: code of the item that was chosen."""
    scale: float
    """Turns the sum of this rank's losses into its part of the global batch's mean."""
    negatives_N: Tensor | None = None
    """int64: item codes, the same on every rank; none with the full softmax."""

    def to(self, device: torch.device) -> "RetrievalBatch":
        """The same batch on another device."""
        negatives_N = None if self.negatives_N is None else self.negatives_N.to(device)
        return RetrievalBatch(self.users.to(device), self.target_B.to(device), self.scale, negatives_N)


class TwoTower(nn.Module):
    """Two-tower model; `forward` is the training loss, `encode_users` and `encode_items` are what retrieval uses."""

    item_attributes_IA: Tensor
    item_frequency_I: Tensor
    longest_age: Tensor

    def __init__(self, config: TwoTowerConfig, vocabulary: Vocabulary, item_attributes_IA: Tensor) -> None:
        """`item_attributes_IA`: int32 attribute codes of every item code, row 0 being `UNKNOWN`."""
        super().__init__()
        self.config = config
        dim, num_codes = config.embedding_dim, vocabulary.num_items + 1
        self.item = _embedding(num_codes, dim, sparse=config.sparse_item_table)
        self.item_attribute = _embedding(len(vocabulary.item_attributes) + 1, dim)
        self.item_bias = nn.Linear(dim, 1)
        self.popularity = nn.Embedding(num_codes, 1, sparse=config.sparse_item_table)
        self.user_attribute = _embedding(len(vocabulary.user_attributes) + 1, dim)
        self.position = nn.Embedding(config.history_length, dim)
        self.age = nn.Embedding(AGE_BINS, dim)
        self.value = _embedding(len(vocabulary.value_edges) + 2, dim)
        self.event_type = _embedding(len(vocabulary.event_types) + 1, dim)
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.mix = nn.Sequential(nn.Linear(4 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.blocks = nn.ModuleList(
            CausalBlock(dim, config.attention_heads, config.dropout) for _ in range(config.causal_blocks)
        )
        self.recency = nn.Parameter(torch.tensor(0.1))
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.position.weight, std=0.05)
        nn.init.normal_(self.age.weight, std=0.05)
        nn.init.zeros_(self.popularity.weight)
        self.register_buffer("item_attributes_IA", item_attributes_IA)
        self.register_buffer("item_frequency_I", torch.zeros(num_codes))
        self.register_buffer("longest_age", torch.tensor(torch.inf))

    def describe_training(self, target_E: Tensor, users: UserBatch) -> None:
        """Take from all training examples what the model must know of its limits.

        An item that was never chosen is placed by its attributes alone, and an event that lies further back than any
        seen in training counts as that far back. A model that goes on from another one remembers what that has seen.
        """
        self.item_frequency_I += torch.bincount(target_E, minlength=len(self.item_frequency_I))
        longest_age = users.history_ages_BL.max()
        self.longest_age.copy_(longest_age if self.longest_age.isinf() else self.longest_age.maximum(longest_age))

    def forward(self, batch: RetrievalBatch) -> Tensor:
        """Cross-entropy of the chosen items, scaled so that the mean over ranks is the global batch's mean loss.

        Without the full softmax each negative's logit is corrected by -log Q, Q being how often the sampler is expected
        to draw it (Bengio & Senécal, 2008; Yi et al., "Sampling-bias-corrected neural modeling", RecSys 2019). The
        target is always there, so it needs no correction, and negatives equal to it are left out: the sum over
        negatives then estimates that over all other items without bias.
        """
        if self.config.sparse_item_table:
            logits_BC, chosen_B = self._sparse_choice_logits(batch)
        else:
            items_ID = self.encode_items()
            logits_BC, chosen_B = self.choice_logits(self._encode(batch.users, items_ID), items_ID, batch)
        return functional.cross_entropy(logits_BC, chosen_B, reduction="none").sum() * batch.scale

    def choice_logits(self, users_BD: Tensor, items_ID: Tensor, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of the items that the loss chooses among, and the place (B,) of the chosen one among them."""
        if batch.negatives_N is None:
            logits_BI = users_BD @ items_ID.T
            logits_BI[:, UNKNOWN] = -torch.inf
            return logits_BI, batch.target_B
        targets_BD, negatives_ND = items_ID[batch.target_B], items_ID[batch.negatives_N]
        return self._sampled_logits(users_BD, targets_BD, negatives_ND, batch), torch.zeros_like(batch.target_B)

    def encode_items(self, codes_I: Tensor | None = None) -> Tensor:
        """Vectors (I, D + 1) of these item codes, or of all; the last column is the item's bias."""
        if codes_I is None:
            frequency_I, attributes_IA = self.item_frequency_I, self.item_attributes_IA
            ids_ID, popularity_I1 = self.item.weight, self.popularity.weight
        else:
            frequency_I, attributes_IA = self.item_frequency_I[codes_I], self.item_attributes_IA[codes_I]
            ids_ID, popularity_I1 = self.item(codes_I), self.popularity(codes_I)
        seen_I1 = (frequency_I > 0).float().unsqueeze(1)
        if self.training:
            seen_I1 = seen_I1 * (torch.rand_like(seen_I1) >= self.config.id_dropout)
        content_ID = functional.embedding_bag(
            attributes_IA, self.item_attribute.weight, mode="sum", padding_idx=UNKNOWN
        )
        bias_I1 = self.item_bias(content_ID) + popularity_I1 * seen_I1
        return torch.cat([ids_ID * seen_I1 + content_ID, bias_I1], dim=1)

    def encode_users(self, users: UserBatch, items_ID: Tensor | None = None) -> Tensor:
        """Vectors (B, D + 1) of users; the last column is 1, so that the dot product adds the item's bias."""
        return self._encode(users, self.encode_items() if items_ID is None else items_ID)

    def _encode(self, users: UserBatch, items_ID: Tensor) -> Tensor:
        if "history" not in self.config.inputs:
            users = users.without_history()
        history_BL = users.history_BL.long()
        present_BL = history_BL != UNKNOWN
        events_BLD = functional.embedding(history_BL, items_ID[:, :-1]) * present_BL.unsqueeze(2)
        attributes_BD = self.user_attribute(users.attributes_BA).sum(dim=1)
        recent_BD = self._recency_weighted(events_BLD, present_BL)
        mean_BD = events_BLD.sum(dim=1) / present_BL.sum(dim=1, keepdim=True).clamp(min=1)
        attended_BD = self._attend(events_BLD, present_BL, users, attributes_BD)
        mixed_BD = self.mix(self.dropout(torch.cat([attended_BD, mean_BD, recent_BD, attributes_BD], dim=1)))
        return torch.cat([mixed_BD + recent_BD, torch.ones_like(mixed_BD[:, :1])], dim=1)

    def _recency_weighted(self, events_BLD: Tensor, present_BL: Tensor) -> Tensor:
        steps_back_L = torch.arange(events_BLD.shape[1] - 1, -1, -1, device=events_BLD.device)
        weights_BL = torch.exp(-self.recency.abs() * steps_back_L) * present_BL
        total_B1 = weights_BL.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return torch.einsum("bl,bld->bd", weights_BL, events_BLD) / total_B1

    def _attend(self, events_BLD: Tensor, present_BL: Tensor, users: UserBatch, attributes_BD: Tensor) -> Tensor:
        batch, length, dim = events_BLD.shape
        heads = self.config.attention_heads
        context_BLD = self.position.weight + self.age(age_bin(users.history_ages_BL.clamp(max=self.longest_age)))
        context_BLD = context_BLD + self.value(users.history_values_BL.int())
        context_BLD = context_BLD + self.event_type(users.history_types_BL.int())
        # Whole events are dropped, not single features: that costs 1/D of the random numbers.
        kept_BL1 = self.dropout(torch.ones_like(events_BLD[:, :, :1]))
        events_BLD = self.norm(events_BLD + context_BLD) * kept_BL1
        if self.blocks:
            allowed_BLL = causal_mask(present_BL)
            for block in self.blocks:
                events_BLD = block(events_BLD, allowed_BLL)
        last_BD = events_BLD[:, -1]
        query_BHE = self.query(last_BD + attributes_BD).view(batch, heads, 1, dim // heads)
        key_BLHE, value_BLHE = self.key_value(events_BLD).view(batch, length, 2, heads, dim // heads).unbind(dim=2)
        # A softmax over no position is undefined: of an empty history the last, padded position stays visible.
        visible_BL = present_BL.clone()
        visible_BL[:, -1] = True
        attended = functional.scaled_dot_product_attention(
            query_BHE, key_BLHE.transpose(1, 2), value_BLHE.transpose(1, 2), attn_mask=visible_BL[:, None, None, :]
        )
        return attended.reshape(batch, dim) + last_BD

    def _sparse_choice_logits(self, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
        """What `choice_logits` gives, by way of the U items alone that are in a history, a target or a negative.

        `UNKNOWN` is the first of the U codes, so that it means the same among them.
        """
        assert batch.negatives_N is not None
        history_BL = batch.users.history_BL
        codes = torch.cat([history_BL.long().flatten(), batch.target_B, batch.negatives_N])
        with_unknown = torch.cat([torch.full_like(codes[:1], UNKNOWN), codes])
        codes_U, places = with_unknown.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        history, targets_B, negatives_N = places[1:].split(
            [history_BL.numel(), len(batch.target_B), len(batch.negatives_N)]
        )
        items_UD = self.encode_items(codes_U)
        users_BD = self._encode(replace(batch.users, history_BL=history.view_as(history_BL)), items_UD)
        logits_BC = self._sampled_logits(users_BD, items_UD[targets_B], items_UD[negatives_N], batch)
        return logits_BC, torch.zeros_like(batch.target_B)

    def _sampled_logits(
        self, users_BD: Tensor, targets_BD: Tensor, negatives_ND: Tensor, batch: RetrievalBatch
    ) -> Tensor:
        target_B, negatives_N = batch.target_B, batch.negatives_N
        assert negatives_N is not None
        positive_B = (users_BD * targets_BD).sum(dim=1)
        negative_BN = users_BD @ negatives_ND.T
        if self.config.logq_correction:
            power = 1.0 if self.config.loss == "in_batch_softmax" else self.config.sampling_power
            expected_I = sampling_probabilities(self.item_frequency_I, power) * len(negatives_N)
            negative_BN = negative_BN - expected_I[negatives_N].log()
        negative_BN = negative_BN.masked_fill(negatives_N == target_B.unsqueeze(1), -torch.inf)
        return torch.cat([positive_B.unsqueeze(1), negative_BN], dim=1)


def sampling_probabilities(frequency_I: Tensor, power: float) -> Tensor:
    """Probability (I,) that the negative sampler draws each item code; 0 for items never chosen and for `UNKNOWN`."""
    weights_I = torch.where(frequency_I > 0, frequency_I**power, 0.0)
    return weights_I / weights_I.sum()


def age_bin(seconds: Tensor) -> Tensor:
    """Logarithmic bins from a second to about ten years."""
    return torch.log2(1 + seconds.clamp(min=0)).div(1.8).long().clamp(max=AGE_BINS - 1)


def _embedding(rows: int, dim: int, *, sparse: bool = False) -> nn.Embedding:
    table = nn.Embedding(rows, dim, padding_idx=UNKNOWN, sparse=sparse)
    nn.init.normal_(table.weight, std=0.05)
    with torch.no_grad():
        table.weight[UNKNOWN] = 0
    return table
