"""What a replica reports of its load."""

import asyncio
from collections.abc import Sequence

import pytest

from serve.batcher import MicroBatcher
from serve.load_meter import LoadMeter


def test_means_since_the_last_reading() -> None:
    now = [100.0]
    meter = LoadMeter(batch_size=4, clock=lambda: now[0])
    for _ in range(6):
        meter.arrived()
    meter.started([0.010, 0.030])
    meter.started([0.020, 0.020, 0.020, 0.080])
    now[0] = 103.0
    assert meter.read() == pytest.approx({"requests_per_s": 2.0, "queue_ms": 30.0, "batch_fill": 0.75})
    now[0] = 104.0
    assert meter.read() == {"requests_per_s": 0.0, "queue_ms": 0.0, "batch_fill": 0.0}


def test_the_batcher_meters_what_it_is_given() -> None:
    async def doubled(items: Sequence[int]) -> list[int]:
        return [2 * item for item in items]

    async def ask() -> dict[str, float]:
        batcher = MicroBatcher(doubled, max_size=4, in_flight=1)
        assert await asyncio.gather(*map(batcher.submit, (1, 2))) == [2, 4]
        return batcher.load.read()

    load = asyncio.run(ask())
    assert load["batch_fill"] == 0.5
    assert load["requests_per_s"] > 0
