"""What all lists together show of the catalogue."""

import numpy as np
import numpy.typing as npt

from train.vocabulary import UNKNOWN

Counts = npt.NDArray[np.int64]


def exposures(ranked_BK: npt.NDArray[np.int64], num_items: int) -> Counts:
    """How many lists show each of the items with the codes 1 … `num_items` (I,)."""
    counts_I = np.bincount(ranked_BK.ravel(), minlength=num_items + 1)
    return np.delete(counts_I, UNKNOWN)


def coverage(exposures_I: Counts) -> float:
    """Share of the catalogue that anybody is shown."""
    return float((exposures_I > 0).mean())


def gini(exposures_I: Counts) -> float:
    """Inequality of the exposures: 0 if every item is shown equally often, near 1 if one item takes all.

    Half the mean absolute difference of two items' exposures, over the mean exposure. NaN if nothing was shown.
    """
    ordered_I = np.sort(exposures_I)
    count, total = len(ordered_I), ordered_I.sum()
    if total == 0:
        return float("nan")
    ranks_I = 2 * np.arange(1, count + 1) - count - 1
    return float((ranks_I * ordered_I).sum() / (count * total))
