import numpy as np
import pytest
import torch

from train.order import ExampleOrder, random_seed

IDS = torch.arange(1000) * 7 - 300


def _steps(order: ExampleOrder, sizes: list[int], epoch: int = 3) -> list[list[int]]:
    """The row ids of each global batch when the number of ranks changes from batch to batch."""
    steps: list[list[int]] = []
    cursor = 0
    while cursor < len(order):
        size = sizes[len(steps) % len(sizes)]
        shares = [next(order.shares(epoch, rank, size, cursor)) for rank in range(size)]
        assert len({(share.start, share.stop, share.seed) for share in shares}) == 1
        assert shares[0].start == cursor
        steps.append([order.row_ids[row].item() for share in shares if share.scale for row in share.rows])
        cursor = shares[0].stop
        assert all(share.scale in {0, size / len(steps[-1])} for share in shares)
    return steps


@pytest.mark.parametrize(("examples", "batch_size"), [(1000, 1000), (1000, 999), (1000, 64), (37, 4), (5, 2), (1, 8)])
@pytest.mark.parametrize("sizes", [[2], [3, 1, 2], [5, 7]])
def test_no_example_is_lost_or_repeated_however_the_ranks_change(
    examples: int, batch_size: int, sizes: list[int]
) -> None:
    order = ExampleOrder(IDS[:examples], batch_size, seed=1)
    alone = [order.row_ids[share.rows].tolist() for share in order.shares(3, 0, 1)]
    assert _steps(order, sizes) == alone
    assert sorted(row for step in alone for row in step) == IDS[:examples].tolist()
    counts = [len(step) for step in alone]
    assert max(counts) <= batch_size
    assert max(counts) - min(counts) <= 1
    assert len(counts) == -(-examples // batch_size)


def test_a_rank_without_examples_takes_part_without_weight() -> None:
    shares = [next(ExampleOrder(IDS[:2], 2, seed=0).shares(0, rank, 3)) for rank in range(3)]
    assert [len(share.rows) for share in shares] == [1, 1, 1]
    assert [share.scale for share in shares] == [1.5, 1.5, 0]


def test_added_rows_do_not_reshuffle_the_others() -> None:
    before = ExampleOrder(IDS, 64, seed=1)
    after = ExampleOrder(torch.cat([torch.tensor([100_000, -5]), IDS.flip(0), torch.tensor([10])]), 64, seed=1)
    old = [before.row_ids[i].item() for i in before.positions(4)]
    new = [after.row_ids[i].item() for i in after.positions(4)]
    assert [row for row in new if row not in {100_000, -5, 10}] == old


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [ExampleOrder(IDS, 64, seed).positions(epoch).numpy() for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, order in enumerate(orders):
        assert sorted(order) == list(range(len(IDS)))
        for other in orders[:i]:
            assert abs(np.corrcoef(np.argsort(order), np.argsort(other))[0, 1]) < 0.15


def test_the_digest_tells_examples_batch_size_and_seed_apart() -> None:
    orders = [
        ExampleOrder(IDS, 64, 0),
        ExampleOrder(IDS[1:], 64, 0),
        ExampleOrder(IDS, 63, 0),
        ExampleOrder(IDS, 64, 1),
    ]
    assert len({order.digest for order in orders}) == 4
    assert ExampleOrder(IDS.clone(), 64, 0).digest == orders[0].digest


def test_random_numbers_of_a_batch_are_those_of_every_rank_and_no_other_batch() -> None:
    order = ExampleOrder(IDS, 64, seed=1)
    drawn = [
        [torch.rand(1, generator=share.generator()).item() for share in order.shares(epoch, rank, 2)]
        for epoch in (0, 1)
        for rank in (0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len({*drawn[0], *drawn[2]}) == 2 * len(drawn[0])


def test_seeds_of_neighbours_are_far_apart() -> None:
    seeds = {
        random_seed(seed, epoch, step, rank)
        for seed in range(5)
        for epoch in range(5)
        for step in range(20)
        for rank in range(4)
    }
    assert len({seed % 2**32 for seed in seeds}) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
