"""Features that are ratios of cells, all at once: `data.temporal.cells.Ratio` for few rows, to the same last bit."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data.temporal.cells import Integers, Ratio

_ONE = np.array(1)
"""NumPy would make an array of a number every time."""


class Ratios:
    """Finishes features; those that are divided by a cell come first."""

    def __init__(self, ratios: Sequence[Ratio]) -> None:
        """Raises ValueError if one that is not divided comes before one that is."""
        divided = [each for each in ratios if each.below is not None]
        if divided != list(ratios[: len(divided)]):
            raise ValueError("ratios that are not divided by a cell come last")
        self.above: Integers = np.array([each.above for each in ratios], dtype=np.int64)
        """The cell of each feature."""
        self.below: Integers = np.array([each.below for each in divided], dtype=np.int64)
        """The cell that it is divided by, of those that are."""
        self._scale = np.array([each.scale for each in ratios], dtype=np.float64)
        self._default = np.array([each.default for each in divided], dtype=np.float64)
        self._has_default = bool(self._default.any())

    def finish_into(self, finished: npt.NDArray[np.float64], above: Integers, below: Integers) -> None:
        """The features (…, ratios) of the cells `self.above` and `self.below`; the latter are overwritten."""
        np.multiply(above, self._scale, out=finished)
        if len(self.below):
            divided = finished[..., : len(self.below)]
            is_none = below <= 0 if self._has_default else None
            np.divide(divided, np.maximum(below, _ONE, out=below), out=divided)
            if is_none is not None:
                np.copyto(divided, self._default, where=is_none)
