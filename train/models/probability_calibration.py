"""Logits turned into probabilities that keep their word, fitted on lists that no weight was trained on.

Temperature scaling for the softmax over candidates (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)
and Platt scaling for a yes or no (Platt, "Probabilistic Outputs for Support Vector Machines", 1999). Neither changes an
order.
"""

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

Values = npt.NDArray[np.float64]

STEEPEST = 100.0
"""Slopes lie between 1 / this (temperature) or 0 (Platt) and this."""


def fit_slope(logits_BK: Values, positive_B: npt.NDArray[np.int64]) -> float:
    """The inverse temperature with the least log loss of the softmax; 1 without lists.

    `logits_BK`: -inf where there is no candidate; `positive_B`: place of the right one in each list.
    """
    if not len(logits_BK):
        return 1.0
    right_B = logits_BK[np.arange(len(positive_B)), positive_B]

    def loss(log_slope: float) -> float:
        slope = np.exp(log_slope)
        return float((scipy.special.logsumexp(slope * logits_BK, axis=1) - slope * right_B).mean())

    most = np.log(STEEPEST)
    found = scipy.optimize.minimize_scalar(loss, bounds=(-most, most), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def fit_platt(logits_N: Values, labels_N: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of `sigmoid(slope * logit + offset)` with the least log loss; (1, 0) without labels.

    The labels are smoothed as Platt does, so that a few, or only equal ones, give no certainty. A slope below zero,
    which would turn the order round, is none: then all get the share of true labels.
    """
    if not len(logits_N):
        return 1.0, 0.0
    true = int(labels_N.sum())
    false = len(labels_N) - true
    targets_N = np.where(labels_N, (true + 1) / (true + 2), 1 / (false + 2))

    def loss(parameters: Values) -> tuple[float, Values]:
        scaled_N = parameters[0] * logits_N + parameters[1]
        error_N = scipy.special.expit(scaled_N) - targets_N
        losses_N = np.logaddexp(0, scaled_N) - targets_N * scaled_N
        return float(losses_N.mean()), np.array([(error_N * logits_N).mean(), error_N.mean()])

    bounds = [(0.0, STEEPEST), (-STEEPEST, STEEPEST)]
    found = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])
