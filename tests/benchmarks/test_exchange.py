"""Two ranks without Ray, on a table that is small enough for a test."""

import pytest

from benchmarks.exchange import Exchange, measure
from benchmarks.table_training import TableConfig, TableTask
from cluster.errors import TowerlineError
from train.horovod_options import HorovodOptions

TABLE = TableConfig(sparse=False, rows=2000, dim=8, batch_size=16)
SPARSE = TableConfig(sparse=True, rows=2000, dim=8, batch_size=16)
TABLE_BYTES = 2000 * 8 * 4


def test_bytes_are_those_of_the_gradients() -> None:
    """Of two ranks, each sends half of the table to be added up and half of the sums."""
    plain = measure(Exchange(TableTask, TABLE, rounds=1, steps=8))
    half = measure(Exchange(TableTask, TABLE, horovod=HorovodOptions(compression="fp16"), rounds=1, steps=8))
    assert TABLE_BYTES < plain.bytes_sent < 1.5 * TABLE_BYTES
    assert 0.4 < half.bytes_sent / plain.bytes_sent < 0.75
    assert plain.examples == 16
    assert 0 < plain.cpu_seconds_alone < plain.cpu_seconds


def test_sparse_gradients_and_fewer_steps_send_less() -> None:
    sparse = measure(Exchange(TableTask, SPARSE, rounds=1, steps=8))
    fewer = measure(Exchange(TableTask, TABLE, "torch", backward_passes_per_step=4, rounds=1, steps=8))
    assert sparse.bytes_sent < 0.3 * TABLE_BYTES
    assert TABLE_BYTES / 4 < fewer.bytes_sent < 1.5 * TABLE_BYTES / 4


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(TowerlineError, match=r"rank [01] of 2 failed \(horovod\):[\s\S]*reduction is 'adasum'"):
        measure(Exchange(TableTask, TABLE, horovod=HorovodOptions(reduction="adasum")))
