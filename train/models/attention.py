"""Causal self-attention over a padded sequence of events."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CausalBlock(nn.Module):
    """A pre-norm transformer block (Xiong et al., ICML 2020). It starts as the identity."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        for last in (self.output, self.narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, events_BLD: Tensor, allowed_BLL: Tensor) -> Tensor:
        """Events (B, L, D) that have looked at those which `allowed_BLL` (the last axis) lets them see."""
        batch, length, dim = events_BLD.shape
        # Whole events are dropped, not single features: that costs 1/D of the random numbers.
        kept_BL1 = self.dropout(torch.ones_like(events_BLD[:, :, :1]))
        parts_BL3HE = self.query_key_value(self.attention_norm(events_BLD)).view(batch, length, 3, self.heads, -1)
        query_BHLE, key_BHLE, value_BHLE = (part.transpose(1, 2) for part in parts_BL3HE.unbind(dim=2))
        seen_BHLE = functional.scaled_dot_product_attention(
            query_BHLE, key_BHLE, value_BHLE, attn_mask=allowed_BLL[:, None]
        )
        events_BLD = events_BLD + self.output(seen_BHLE.transpose(1, 2).reshape(batch, length, dim)) * kept_BL1
        added_BLD: Tensor = self.narrow(functional.gelu(self.wide(self.forward_norm(events_BLD)))) * kept_BL1
        return events_BLD + added_BLD


def causal_mask(present_BL: Tensor) -> Tensor:
    """Which events (the last axis) each event (the one before) may see: present ones up to itself, and itself always.

    A softmax over no event would be undefined.
    """
    length = present_BL.shape[1]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=present_BL.device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=present_BL.device)
    return (earlier_LL & present_BL[:, None, :]) | itself_LL
