"""How sure a mean is: 95 % bootstrap intervals and paired tests, by user.

Values of one user (of several cut-offs, say) are no independent evidence, so users are drawn, with all their values
(the cluster bootstrap). The same seed gives the same draws, whatever is measured.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import TowerlineError

Values = npt.NDArray[np.float64]
Users = Sequence[str] | npt.NDArray[np.generic] | pl.Series

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
DRAWS_AT_ONCE = 2**22


class Interval(BaseModel):
    """A mean and the 95 % interval around it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside."""
        return self.low > 0 or self.high < 0


class PairedTest(BaseModel):
    """Whether two models differ on the same questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    a: str
    b: str
    difference: Interval
    """Mean of a's values less b's."""
    p_value: Annotated[float, Field(gt=0, le=1)]
    """Of the randomisation test: how often a difference as large appears if the models' names are swapped by chance,
    user by user (Smucker et al., CIKM 2007)."""
    users: int


def bootstrap(values: Values, users: Users | None = None, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `values` (N,) with its interval. `users`: whom each value is of; each its own user if None."""
    return bootstrap_columns(values[:, np.newaxis], users, seed=seed, resamples=resamples)[0]


def paired_bootstrap(
    values_a: Values, values_b: Values, users: Users | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The mean of `values_a - values_b`, question by question, with its interval."""
    if len(values_a) != len(values_b):
        raise TowerlineError(
            f"a paired comparison needs values of the same questions, there are {len(values_a)} and {len(values_b)}"
        )
    return bootstrap(values_a - values_b, users, seed=seed, resamples=resamples)


def bootstrap_columns(
    values_NM: Values, users: Users | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval]:
    """The mean of each column and its interval, all from the same draws. NaN is no value.

    Raises:
        TowerlineError: a column has no value, or the values are of fewer than two users.
    """
    sums_CM, counts_CM = _by_user(values_NM, users)
    means_RM = np.concatenate(
        [(draws_RC @ sums_CM) / _or_nan(draws_RC @ counts_CM) for draws_RC in _draws(len(sums_CM), seed, resamples)]
    )
    means_M = sums_CM.sum(axis=0) / counts_CM.sum(axis=0)
    low_M, high_M = np.nanpercentile(means_RM, PERCENTILES, axis=0)
    return [
        Interval(mean=float(mean), low=float(low), high=float(high))
        for mean, low, high in zip(means_M, low_M, high_M, strict=True)
    ]


def randomisation_test(
    differences: Values, users: Users | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Two-sided p-value of the mean of paired differences (N,) being zero: signs are flipped by user."""
    sums_CM, _ = _by_user(differences[:, np.newaxis], users)
    sums_C = sums_CM[:, 0]
    random = np.random.default_rng(seed)
    as_large = 1
    for start, stop in _chunks(len(sums_C), resamples):
        signs_RC = random.integers(0, 2, size=(stop - start, len(sums_C)), dtype=np.int8) * 2.0 - 1
        as_large += int((np.abs(signs_RC @ sums_C) >= abs(sums_C.sum()) * (1 - 1e-12)).sum())
    return as_large / (resamples + 1)


def _by_user(values_NM: Values, users: Users | None) -> tuple[Values, Values]:
    """Sum and number (C, M) of each user's values."""
    is_value_NM = ~np.isnan(values_NM)
    if not is_value_NM.any(axis=0).all():
        raise TowerlineError("a metric has no value for any user; it cannot be averaged")
    zeroed_NM = np.where(is_value_NM, values_NM, 0.0)
    if users is None:
        sums_CM, counts_CM = zeroed_NM, is_value_NM.astype(np.float64)
    else:
        codes_N = pl.Series(users).rank("dense").to_numpy().astype(np.int64) - 1
        if len(codes_N) != len(values_NM):
            raise TowerlineError(f"{len(values_NM)} values are of {len(codes_N)} users; name one user per value")
        ones = np.ones(len(codes_N))
        owners_CN = scipy.sparse.csr_array((ones, (codes_N, np.arange(len(codes_N)))))
        sums_CM, counts_CM = owners_CN @ zeroed_NM, owners_CN @ is_value_NM.astype(np.float64)
    if len(sums_CM) < 2:
        raise TowerlineError(f"an interval needs the values of 2 users or more, there are {len(sums_CM)}")
    return sums_CM, counts_CM


def _draws(clusters: int, seed: int, resamples: int) -> Iterator[Values]:
    """How often each user is drawn (R, C), some draws at a time, to bound the memory."""
    random = np.random.default_rng(seed)
    for start, stop in _chunks(clusters, resamples):
        drawn = random.integers(0, clusters, size=(stop - start, clusters))
        drawn += np.arange(stop - start)[:, np.newaxis] * clusters
        counts = np.bincount(drawn.ravel(), minlength=(stop - start) * clusters)
        yield counts.reshape(stop - start, clusters).astype(np.float64)


def _chunks(clusters: int, resamples: int) -> Iterator[tuple[int, int]]:
    size = max(1, DRAWS_AT_ONCE // clusters)
    for start in range(0, resamples, size):
        yield start, min(start + size, resamples)


def _or_nan(counts: Values) -> Values:
    """A draw without any value has no mean."""
    return np.where(counts > 0, counts, np.nan)
