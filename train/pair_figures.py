"""What the lists of a pair do not tell: whether the ranker's probabilities hold, and how long one user takes."""

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.special

from train.cases import Cases
from train.evaluation import USERS_AT_ONCE, Measurements
from train.pair import RankedRecommender
from train.vocabulary import UNKNOWN

Values = npt.NDArray[np.float64]

CALIBRATION = "calibration_error"
LATENCY = "latency_p95_ms"
BINS = 10
TIMED_USERS = 200
WARM_UP = 5
SHOWN = 10


def with_pair_figures(measured: Measurements, name: str, pair: RankedRecommender, cases: Cases) -> Measurements:
    """`measured` with the calibration and latency of `pair`, which is called `name` there."""
    figures = {f"{LATENCY}/{name}": latency_p95_ms(pair, cases)}
    error = calibration_error(pair, cases)
    if error is not None:
        figures[f"{CALIBRATION}/{name}"] = error
    return replace(measured, catalogue={**measured.catalogue, **figures})


def calibration_error(pair: RankedRecommender, cases: Cases) -> float | None:
    """Expected calibration error of "the first item is the right one", in `BINS` bins (Naeini et al., AAAI 2015).

    The probabilities are the softmax of the ranker's scores over its candidates, so only cases whose right answer is
    among them count; None if there is no such case.
    """
    confidences: list[Values] = []
    rights: list[npt.NDArray[np.bool_]] = []
    for start in range(0, len(cases), USERS_AT_ONCE):
        some = slice(start, start + USERS_AT_ONCE)
        codes_BK, logits_BK = pair.score(cases.rows[some], cases.exclude[some])
        targets = cases.targets[some]
        is_right_BK = np.array(
            [np.isin(row, right) & (row != UNKNOWN) for row, right in zip(codes_BK, targets, strict=True)]
        )
        among_B = is_right_BK.any(axis=1)
        first_B = logits_BK[among_B].argmax(axis=1)
        confidences.append(scipy.special.softmax(logits_BK[among_B].astype(np.float64), axis=1).max(axis=1))
        rights.append(is_right_BK[among_B][np.arange(len(first_B)), first_B])
    return expected_calibration_error(np.concatenate(confidences), np.concatenate(rights))


def expected_calibration_error(confidence_N: Values, is_right_N: npt.NDArray[np.bool_]) -> float | None:
    """Mean distance of confidence and share of right answers over equally wide bins, weighted by their size."""
    if not len(confidence_N):
        return None
    bins_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins_N, confidence_N - is_right_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def latency_p95_ms(pair: RankedRecommender, cases: Cases) -> float:
    """95th percentile of the milliseconds that retrieval and ranking take for one user, over the first of them."""
    asked = [slice(row, row + 1) for row in range(min(TIMED_USERS, len(cases)))]
    spent = []
    for one in (*asked[:WARM_UP], *asked):
        start = time.perf_counter()
        pair.recommend(cases.rows[one], cases.exclude[one], SHOWN)
        spent.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(spent[len(asked[:WARM_UP]) :], 95))
