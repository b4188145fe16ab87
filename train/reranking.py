"""Whether another order of a ranker's first candidates helps, for whom, and how sure that is."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from data.schema import USER_ID
from train.bootstrap import Interval, bootstrap, paired_bootstrap
from train.cases import Cases
from train.index import Codes, Floats
from train.metrics.accuracy import hits_of, is_among, ndcg_at
from train.vocabulary import UNKNOWN

Values = npt.NDArray[np.float64]

SHOWN = 10
"""Places that NDCG looks at."""


class Scores(Protocol):
    """A ranker over candidates."""

    def score(self, rows: pl.DataFrame, exclude: list[Codes]) -> tuple[Codes, Floats]:
        """Candidates (B, K) of B feature rows and their scores."""


Orders = Callable[[Mapping[str, Any], Codes, Values], Sequence[Codes]]
"""For a user's feature row, the codes (M,) of the first candidates, best first, and their scores (M,): the places of
these candidates in their new order (M,), once for each weight."""

Track = Callable[[Sequence[int]], Iterable[int]]
"""Goes through some numbers, and may show how far it is."""


@dataclass(frozen=True)
class Bucket:
    """The values of N questions of users with the same number of known events. W weights."""

    known_events: int
    users: pl.Series
    """Who was asked about (N,)."""
    without_N: Values
    """NDCG@10 of the ranker's order."""
    with_NW: Values
    """NDCG@10 of the other order, for each weight."""
    reordered: int
    """Questions for which another order was found: those whose value it can change."""
    seconds: float
    """Wall time for the other orders."""

    def gain(self, weight: int) -> Interval:
        """Mean gain of a weight, by its number, and its 95 % interval."""
        return paired_bootstrap(self.with_NW[:, weight], self.without_N, self.users)


def measure_bucket(
    ranker: Scores,
    cases: Cases,
    orders: Orders,
    *,
    known_events: int,
    places: int,
    weights: int,
    track: Track = iter,
) -> Bucket:
    """NDCG@10 with and without another order of the first `places` candidates.

    Where none of them is a right answer no order of them changes the value; so `orders` is not asked there.
    """
    codes_BK, scores_BK = ranker.score(cases.rows, cases.exclude)
    scores_BK = np.where(codes_BK == UNKNOWN, -np.inf, scores_BK)
    best_BK = np.lexsort((codes_BK, -scores_BK), axis=1)
    codes_BK = np.take_along_axis(codes_BK, best_BK, axis=1)
    scores_BK = np.take_along_axis(scores_BK, best_BK, axis=1)
    without_N = _ndcg(codes_BK, cases.targets)
    with_NW = np.repeat(without_N[:, np.newaxis], weights, axis=1)
    is_right_BM = is_among(codes_BK[:, :places], cases.targets) & (codes_BK[:, :places] != UNKNOWN)
    questions = np.flatnonzero(is_right_BM.any(axis=1)).tolist()
    start = time.monotonic()
    for row in track(questions):
        first_M = codes_BK[row, :places][codes_BK[row, :places] != UNKNOWN]
        user = cases.rows.row(row, named=True)
        for weight, order_M in enumerate(orders(user, first_M, scores_BK[row, : len(first_M)].astype(np.float64))):
            reordered = np.concatenate([first_M[order_M], codes_BK[row, len(first_M) :]])
            with_NW[row, weight] = _ndcg(reordered[np.newaxis], [cases.targets[row]])[0]
    spent = time.monotonic() - start
    return Bucket(known_events, cases.rows[USER_ID], without_N, with_NW, len(questions), spent)


@dataclass(frozen=True)
class Threshold:
    """Up to how many known events a weight helps."""

    known_events: int
    weight: int
    """By its number."""


def find_threshold(buckets: Sequence[Bucket], weights: int) -> Threshold | None:
    """The weight that helps up to the most known events; None if there is none.

    A weight helps up to a number if the interval of its gain lies above zero there and at every smaller number that
    was measured. Among weights that reach equally far, the one with the largest mean gain wins.
    """
    ordered = sorted(buckets, key=lambda bucket: bucket.known_events)
    found: list[tuple[int, float, int]] = []
    for weight in range(weights):
        helped: list[Bucket] = []
        for bucket in ordered:
            if bucket.gain(weight).low <= 0:
                break
            helped.append(bucket)
        if helped:
            mean = float(np.mean([bucket.gain(weight).mean for bucket in helped]))
            found.append((helped[-1].known_events, mean, -weight))
    if not found:
        return None
    known_events, _, weight = max(found)
    return Threshold(known_events, -weight)


def best_weight(buckets: Sequence[Bucket], weights: int) -> int:
    """The number of the weight with the largest gain, over all buckets alike."""
    gains = [
        np.mean([(bucket.with_NW[:, weight] - bucket.without_N).mean() for bucket in buckets])
        for weight in range(weights)
    ]
    return int(np.argmax(gains))


def gain_up_to(buckets: Sequence[Bucket], threshold: Threshold) -> Interval:
    """The gain over all questions up to a threshold together; users are drawn with all their questions."""
    some = [bucket for bucket in buckets if bucket.known_events <= threshold.known_events]
    gains = np.concatenate([bucket.with_NW[:, threshold.weight] - bucket.without_N for bucket in some])
    return bootstrap(gains, pl.concat([bucket.users for bucket in some]))


def _ndcg(ranked_BK: Codes, targets: Sequence[Codes]) -> Values:
    positives_B = np.array([len(codes) for codes in targets], dtype=np.int64)
    return ndcg_at(hits_of(ranked_BK[:, :SHOWN], targets), positives_B, SHOWN)
