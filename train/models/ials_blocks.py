"""One half-step of alternating least squares, block by block: in this process, or on Ray's workers with equal results.

A block is a run of rows (users, or items). Which rows it has depends on the data alone, so that the same sums are
taken in the same order wherever it is solved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from cluster.errors import TowerlineError
from train.crew import dismiss
from train.index import Floats

ROWS_AT_MOST = 8192
EVENTS_AT_MOST = 2**18
"""Of a block, unless one row alone has more."""
NUMBERS_AT_ONCE = 2**23
"""Of the padded factors, and of the matrices, that are held while a block is solved: 32 MiB each."""


@dataclass(frozen=True)
class Penalty:
    """The loss of one side: what is not observed, and the regularisation (Rendle et al., RecSys 2022)."""

    unobserved_weight: float
    """α₀, the weight of the squared score of every pair."""
    regularization: float
    """λ."""
    exponent: float
    """A row is held back by λ (its events + α₀ · rows of the other side) to the power of this."""


@dataclass(frozen=True)
class OtherSide:
    """The factors that are held still, and what all rows share."""

    factors_ND: Tensor
    gram_DD: Tensor
    """α₀ FᵀF."""
    size: int
    """Rows that have events."""

    @classmethod
    def of(cls, factors_ND: Tensor, size: int, penalty: Penalty) -> "OtherSide":
        """With their Gram matrix."""
        return cls(factors_ND, penalty.unobserved_weight * (factors_ND.T @ factors_ND), size)


HalfStep = Callable[[OtherSide], Tensor]
"""The factors of one side, given the other."""
Solver = Callable[[scipy.sparse.csr_array, Penalty], HalfStep]
"""Where the half-steps of one side are computed."""


def in_process(weights_RN: scipy.sparse.csr_array, penalty: Penalty) -> HalfStep:
    """One block after another, here."""
    blocks = list(blocks_of(weights_RN))
    return lambda other: torch.cat([other.factors_ND[:0], *(solve(block, other, penalty) for block in blocks)])


def on_ray(weights_RN: scipy.sparse.csr_array, penalty: Penalty) -> HalfStep:
    """A task of one CPU for each block; the other side's factors lie in the object store once.

    A task whose worker dies is run again by Ray. Workers that wait for a training give it their CPUs.
    """
    import ray

    dismiss()
    blocks = [ray.put(block) for block in blocks_of(weights_RN)]
    task = ray.remote(num_cpus=1)(solve)

    def half_step(other: OtherSide) -> Tensor:
        held = ray.put(other)
        return torch.cat(ray.get([task.remote(block, held, penalty) for block in blocks]))

    return half_step


def where_there_is_room(weights_RN: scipy.sparse.csr_array, penalty: Penalty) -> HalfStep:
    """On Ray in the driver of a session; in this process if there is none, or if this is a worker of one.

    A task that waited for tasks of its own would hold the CPUs that they wait for. One block alone is solved here.
    """
    import ray

    is_driver = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE
    one_block = next(blocks_of(weights_RN)).shape[0] == weights_RN.shape[0]
    return (on_ray if is_driver and not one_block else in_process)(weights_RN, penalty)


def blocks_of(weights_RN: scipy.sparse.csr_array) -> Iterator[scipy.sparse.csr_array]:
    """Runs of rows."""
    start = 0
    while start < weights_RN.shape[0]:
        full = int(np.searchsorted(weights_RN.indptr, weights_RN.indptr[start] + EVENTS_AT_MOST, side="right")) - 1
        end = min(max(full, start + 1), start + ROWS_AT_MOST, weights_RN.shape[0])
        yield weights_RN[start:end]
        start = end


def solve(weights_RN: scipy.sparse.csr_array, other: OtherSide, penalty: Penalty) -> Tensor:
    """The factors (R, D) that minimise the loss of these rows: one normal equation each, by Cholesky, many at once.

    For a row with weights w_n: (Σ w_n f_n f_nᵀ + α₀ FᵀF + λ_r) x = Σ w_n f_n. Rows without events are zero.

    Raises:
        TowerlineError: an equation has no one solution in the precision of the factors.
    """
    dim = other.factors_ND.shape[1]
    solved_RD = torch.zeros((weights_RN.shape[0], dim), dtype=other.factors_ND.dtype)
    lengths_R = np.diff(weights_RN.indptr)
    for rows in _alike(lengths_R, dim):
        codes_BL, weight_BL = _padded(weights_RN, rows, int(lengths_R[rows].max()))
        factors_BLD = other.factors_ND[codes_BL]
        weighted_BLD = factors_BLD * weight_BL.unsqueeze(2)
        matrices_BDD = other.gram_DD + weighted_BLD.transpose(1, 2) @ factors_BLD
        events_B = weight_BL.sum(dim=1) + penalty.unobserved_weight * other.size
        held_back_B = penalty.regularization * events_B**penalty.exponent
        matrices_BDD.diagonal(dim1=1, dim2=2).add_(held_back_B.unsqueeze(1))
        sums_BD1 = weighted_BLD.sum(dim=1).unsqueeze(2)
        triangles_BDD, failed_B = torch.linalg.cholesky_ex(matrices_BDD)
        if failed_B.any():
            raise TowerlineError(
                f"iALS: regularization {penalty.regularization:g} is too small for {dim} factors to have one solution; "
                "raise it"
            )
        solved_RD[rows] = torch.cholesky_solve(sums_BD1, triangles_BDD).squeeze(2)
    return solved_RD


def _alike(lengths_R: npt.NDArray[np.int32], dim: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of about equal length that are solved at once; those without events in none."""
    rows = np.argsort(lengths_R, kind="stable")
    rows = rows[lengths_R[rows] > 0]
    end = len(rows)
    while end > 0:
        padded = max(int(lengths_R[rows[end - 1]]), dim) * dim
        start = max(0, end - max(1, NUMBERS_AT_ONCE // padded))
        yield rows[start:end]
        end = start


def _padded(weights_RN: scipy.sparse.csr_array, rows: npt.NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    """Column numbers and weights (B, L) of these rows; the weight of padding is 0."""
    starts, ends = weights_RN.indptr[rows], weights_RN.indptr[rows + 1]
    places_BL = starts[:, np.newaxis] + np.arange(length)
    present_BL = places_BL < ends[:, np.newaxis]
    places_BL = np.where(present_BL, places_BL, 0)
    codes_BL = weights_RN.indices[places_BL].astype(np.int64)
    weight_BL: Floats = np.where(present_BL, weights_RN.data[places_BL], np.float32(0))
    return torch.from_numpy(codes_BL), torch.from_numpy(weight_BL)
