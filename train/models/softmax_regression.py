"""Weights of signals that make what was chosen likely among what was offered: conditional (softmax) regression."""

import numpy as np
import numpy.typing as npt
import scipy.optimize

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def fit_softmax_regression(signals_BKF: Doubles, present_BK: Flags, chosen_BK: Flags, l2: float) -> Doubles:
    """The weights (F,) that minimise the cross-entropy of the chosen among the present candidates of each list.

    A list without a chosen candidate says nothing. The loss is the mean over the chosen, plus `l2` / 2 times the
    squares of the weights over the number of lists: convex, so that the answer depends on nothing else.
    """
    told_B = chosen_BK.any(axis=1)
    signals_BKF, present_BK, chosen_BK = signals_BKF[told_B], present_BK[told_B], chosen_BK[told_B]
    chosen_B = chosen_BK.sum(axis=1)
    wanted_F = np.einsum("bk,bkf->f", chosen_BK.astype(np.float64), signals_BKF)
    penalty, total = l2 / len(chosen_B), chosen_B.sum()

    def loss(weights_F: Doubles) -> tuple[float, Doubles]:
        logits_BK = np.where(present_BK, signals_BKF @ weights_F, -np.inf)
        highest_B1 = logits_BK.max(axis=1, keepdims=True)
        exponentials_BK = np.exp(logits_BK - highest_B1)
        sums_B1 = exponentials_BK.sum(axis=1, keepdims=True)
        expected_BK = exponentials_BK / sums_B1 * chosen_B[:, np.newaxis]
        log_sums_B = (np.log(sums_B1) + highest_B1)[:, 0]
        value = (chosen_B @ log_sums_B - wanted_F @ weights_F) / total + penalty / 2 * weights_F @ weights_F
        slope_F = (np.einsum("bk,bkf->f", expected_BK, signals_BKF) - wanted_F) / total + penalty * weights_F
        return float(value), slope_F

    found = scipy.optimize.minimize(loss, np.zeros(signals_BKF.shape[2]), jac=True, method="L-BFGS-B")
    weights_F: Doubles = found.x
    return weights_F
