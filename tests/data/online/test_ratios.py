"""Features of few rows are finished all at once as those of many are, one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.online.states.ratios import Ratios
from data.temporal.cells import Ratio

MEAN = Ratio("mean", above=1, below=0, scale=2.0**-16, default=-1.0)
SHARE = Ratio("share", above=2, below=1, scale=1.0, default=0.5)
COUNT = Ratio("count", above=0, below=None, scale=1.0, default=0.0)
RATE = Ratio("rate", above=0, below=None, scale=1 / 7, default=0.0)


@pytest.mark.parametrize("ratios", [(MEAN, SHARE, COUNT, RATE), (SHARE, RATE), (COUNT, RATE)])
@given(rows=st.lists(st.lists(st.integers(0, 2**48), min_size=3, max_size=3), min_size=1, max_size=20))
def test_they_equal_those_finished_one_by_one(ratios: tuple[Ratio, ...], rows: list[list[int]]) -> None:
    cells = np.array(rows, dtype=np.int64)
    expected = np.stack([ratio.finish(list(cells.T)).astype(np.float64) for ratio in ratios], axis=1)
    together, finished = Ratios(ratios), np.empty((len(rows), len(ratios)))
    together.finish_into(finished, cells.take(together.above, axis=1), cells.take(together.below, axis=1))
    assert np.array_equal(finished, expected)
    for row, values in zip(cells, expected, strict=True):
        alone = np.empty(len(ratios))
        together.finish_into(alone, row.take(together.above), row.take(together.below))
        assert np.array_equal(alone, values)


def test_the_divided_ones_come_first() -> None:
    with pytest.raises(ValueError, match="come last"):
        Ratios([COUNT, MEAN])
