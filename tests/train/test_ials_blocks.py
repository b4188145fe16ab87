import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from cluster.errors import TowerlineError
from train.models import ials_blocks
from train.models.ials_blocks import OtherSide, Penalty, blocks_of, in_process, on_ray, solve, where_there_is_room

PENALTY = Penalty(unobserved_weight=0.2, regularization=0.05, exponent=0.7)


def weights(rows: int = 40, columns: int = 25, seed: int = 0) -> scipy.sparse.csr_array:
    """Rows of very different lengths, among them empty and full ones."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.geometric(0.15, rows) - 1, columns)
    lengths[:3] = (0, columns, 0)
    indices = np.concatenate([np.sort(random.choice(columns, size, replace=False)) for size in lengths])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = random.uniform(0.1, 1, len(indices)).astype(np.float32)
    return scipy.sparse.csr_array((data, indices, indptr), shape=(rows, columns))


def other_side(columns: int = 25, dim: int = 6) -> OtherSide:
    factors_ND = torch.randn((columns, dim), generator=torch.Generator().manual_seed(0))
    return OtherSide.of(factors_ND, columns, PENALTY)


def by_normal_equations(weights_RN: np.ndarray, factors_ND: np.ndarray, size: int, penalty: Penalty) -> np.ndarray:
    """Row by row and dense, in float64: every pair has the target 0 with weight α₀, every event 1 with its own."""
    solved = np.zeros((len(weights_RN), factors_ND.shape[1]))
    for row, weights_N in enumerate(weights_RN):
        if not weights_N.any():
            continue
        events = weights_N.sum() + penalty.unobserved_weight * size
        matrix = factors_ND.T @ np.diag(weights_N + penalty.unobserved_weight) @ factors_ND
        matrix += penalty.regularization * events**penalty.exponent * np.eye(factors_ND.shape[1])
        solved[row] = np.linalg.solve(matrix, factors_ND.T @ weights_N)
    return solved


@pytest.mark.parametrize("numbers_at_once", [1, 200, 2**23])
def test_rows_solve_their_normal_equations(monkeypatch: pytest.MonkeyPatch, numbers_at_once: int) -> None:
    monkeypatch.setattr(ials_blocks, "NUMBERS_AT_ONCE", numbers_at_once)
    weights_RN, other = weights(), other_side()
    expected = by_normal_equations(weights_RN.toarray(), other.factors_ND.double().numpy(), other.size, PENALTY)
    np.testing.assert_allclose(solve(weights_RN, other, PENALTY), expected, rtol=2e-4, atol=2e-6)


def test_solved_rows_have_the_lowest_loss() -> None:
    weights_RN, other = weights(), other_side()
    solved_RD = solve(weights_RN, other, PENALTY).double().numpy()
    factors_ND, weights_N = other.factors_ND.double().numpy(), weights_RN.toarray()[1]

    def loss(row_D: np.ndarray) -> float:
        scores_N = factors_ND @ row_D
        events = weights_N.sum() + PENALTY.unobserved_weight * other.size
        held_back = PENALTY.regularization * events**PENALTY.exponent * row_D @ row_D
        return float(weights_N @ (1 - scores_N) ** 2 + PENALTY.unobserved_weight * (scores_N**2).sum() + held_back)

    random = np.random.default_rng(0)
    for size in (1e-2, 0.3):
        assert loss(solved_RD[1] + size * random.standard_normal(solved_RD.shape[1])) > loss(solved_RD[1])


@pytest.mark.parametrize(("rows_at_most", "events_at_most"), [(8192, 2**18), (7, 2**18), (8192, 20), (8192, 1)])
def test_blocks_are_all_rows_in_their_order(
    monkeypatch: pytest.MonkeyPatch, rows_at_most: int, events_at_most: int
) -> None:
    monkeypatch.setattr(ials_blocks, "ROWS_AT_MOST", rows_at_most)
    monkeypatch.setattr(ials_blocks, "EVENTS_AT_MOST", events_at_most)
    weights_RN = weights()
    blocks = list(blocks_of(weights_RN))
    assert (scipy.sparse.vstack(blocks) != weights_RN).nnz == 0
    for block in blocks:
        assert 1 <= block.shape[0] <= rows_at_most
        assert block.nnz <= events_at_most or np.count_nonzero(np.diff(block.indptr)) == 1


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_RN, other = weights(), other_side()
    expected = in_process(weights_RN, PENALTY)(other)
    monkeypatch.setattr(ials_blocks, "ROWS_AT_MOST", 3)
    np.testing.assert_allclose(in_process(weights_RN, PENALTY)(other), expected, rtol=1e-4, atol=1e-6)


def test_a_user_with_fifty_thousand_events() -> None:
    random = np.random.default_rng(0)
    columns = 60_000
    indices = np.sort(random.choice(columns, 50_000, replace=False))
    ones = np.ones(len(indices), dtype=np.float32)
    weights_RN = scipy.sparse.csr_array((ones, indices, np.array([0, 0, len(indices)])), shape=(2, columns))
    factors_ND = 0.1 * torch.randn((columns, 8), generator=torch.Generator().manual_seed(0))
    other = OtherSide.of(factors_ND, columns, PENALTY)
    weighted_ND = (weights_RN.toarray()[1] + PENALTY.unobserved_weight)[:, np.newaxis] * factors_ND.double().numpy()
    matrix = factors_ND.double().numpy().T @ weighted_ND
    events = 50_000 + PENALTY.unobserved_weight * columns
    matrix += PENALTY.regularization * events**PENALTY.exponent * np.eye(8)
    expected = np.linalg.solve(matrix, factors_ND.double().numpy()[indices].sum(axis=0))
    np.testing.assert_allclose(solve(weights_RN, other, PENALTY)[1], expected, rtol=1e-3, atol=1e-5)


def test_equations_without_one_solution_are_refused() -> None:
    """An event or two say nothing about most of 64 factors."""
    hardly = Penalty(unobserved_weight=1e-30, regularization=1e-30, exponent=1.0)
    factors_ND = torch.randn((25, 64), generator=torch.Generator().manual_seed(0))
    with pytest.raises(TowerlineError, match="regularization 1e-30 is too small for 64 factors"):
        solve(weights(), OtherSide.of(factors_ND, 25, hardly), hardly)


@pytest.mark.usefixtures("ray_session")
def test_a_block_whose_worker_dies_is_solved_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = tmp_path / "the first worker was here"

    def dies_once(block: scipy.sparse.csr_array, other: OtherSide, penalty: Penalty) -> torch.Tensor:
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return solve(block, other, penalty)

    expected = in_process(weights(), PENALTY)(other_side())
    monkeypatch.setattr(ials_blocks, "solve", dies_once)
    np.testing.assert_array_equal(on_ray(weights(), PENALTY)(other_side()), expected)
    assert first.exists()


@pytest.mark.usefixtures("ray_session")
def test_workers_give_what_this_process_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ials_blocks, "ROWS_AT_MOST", 7)
    weights_RN, other = weights(), other_side()
    here, there = in_process(weights_RN, PENALTY), on_ray(weights_RN, PENALTY)
    np.testing.assert_array_equal(there(other), here(other))
    changed = replace(other, factors_ND=other.factors_ND * 2)
    np.testing.assert_array_equal(there(changed), here(changed))
    np.testing.assert_array_equal(where_there_is_room(weights_RN, PENALTY)(other), here(other))


@pytest.mark.usefixtures("ray_session")
def test_one_block_is_solved_where_it_is() -> None:
    half_step = where_there_is_room(weights(), PENALTY)
    assert half_step.__qualname__ == in_process(weights(), PENALTY).__qualname__


@pytest.mark.usefixtures("ray_session")
def test_a_worker_of_a_session_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its CPU; with as many such tasks as there are CPUs, nothing would ever go on."""
    import ray

    def solved_by() -> list[str]:
        ials_blocks.ROWS_AT_MOST = 7
        half_step = where_there_is_room(weights(), PENALTY)
        return [half_step.__qualname__]

    names = ray.get(ray.remote(num_cpus=1)(solved_by).remote())
    assert names == [in_process(weights(), PENALTY).__qualname__]
    monkeypatch.setattr(ials_blocks, "ROWS_AT_MOST", 7)
    assert where_there_is_room(weights(), PENALTY).__qualname__ == on_ray(weights(), PENALTY).__qualname__
