import pytest
import torch
from torch import Tensor, nn

from train.models.attention import CausalBlock, causal_mask

BATCH, LENGTH, DIM = 3, 7, 8
FIRST = (0, 3, 6)
"""Of each sequence, where it begins: what is before is padding."""


@pytest.fixture
def block() -> CausalBlock:
    torch.manual_seed(0)
    block = CausalBlock(DIM, heads=2, dropout=0.0)
    for last in (block.output, block.narrow):
        nn.init.normal_(last.weight)
    return block


@pytest.fixture
def events_BLD() -> Tensor:
    return torch.randn(BATCH, LENGTH, DIM, generator=torch.Generator().manual_seed(1))


def present() -> Tensor:
    return torch.stack([torch.arange(LENGTH) >= first for first in FIRST])


def test_an_event_sees_itself_and_earlier_ones_that_are_there() -> None:
    allowed_BLL = causal_mask(present())
    for row, first in enumerate(FIRST):
        for event in range(LENGTH):
            expected = {other for other in range(LENGTH) if first <= other <= event} | {event}
            assert set(allowed_BLL[row, event].nonzero().ravel().tolist()) == expected


def test_what_comes_later_and_what_is_padding_changes_nothing(block: CausalBlock, events_BLD: Tensor) -> None:
    before = block(events_BLD, causal_mask(present()))
    for row, first in enumerate(FIRST):
        for changed in range(LENGTH):
            others = events_BLD.clone()
            others[row, changed] *= -1
            moved = (block(others, causal_mask(present()))[row] - before[row]).abs().amax(dim=1) > 1e-6
            expected = {changed} if changed < first else set(range(changed, LENGTH))
            assert set(moved.nonzero().ravel().tolist()) == expected


def test_it_starts_as_the_identity(events_BLD: Tensor) -> None:
    fresh = CausalBlock(DIM, heads=2, dropout=0.5)
    torch.testing.assert_close(fresh(events_BLD, causal_mask(present())), events_BLD)
