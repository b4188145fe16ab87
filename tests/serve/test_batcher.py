"""Requests that come in together are answered together; no timer makes anyone wait, nobody is forgotten."""

import asyncio
from collections.abc import Sequence

import pytest

from serve.batcher import QUIET_TURNS, MicroBatcher, QueueFullError

pytestmark = pytest.mark.anyio


class Doubler:
    """Doubles numbers, once it may, and remembers the batches."""

    def __init__(self, *, may: bool = True) -> None:
        self.may = asyncio.Event()
        if may:
            self.may.set()
        self.batches: list[list[int]] = []
        self.running = 0
        self.most_running = 0

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        await self.may.wait()
        self.running -= 1
        if -13 in numbers:
            raise ValueError("-13")
        return [2 * number for number in numbers]


async def _turns_of_the_loop() -> None:
    """What was to happen at once has happened."""
    for _ in range(2 * QUIET_TURNS):
        await asyncio.sleep(0)


async def test_requests_of_one_moment_share_a_batch_and_later_ones_wait_for_its_end() -> None:
    doubler = Doubler(may=False)
    batcher = MicroBatcher(doubler, max_size=8, in_flight=1)
    first = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
    await _turns_of_the_loop()
    second = [asyncio.ensure_future(batcher.submit(number)) for number in range(3, 5)]
    await _turns_of_the_loop()
    doubler.may.set()
    assert await asyncio.gather(*first, *second) == [0, 2, 4, 6, 8]
    assert doubler.batches == [[0, 1, 2], [3, 4]]


async def test_a_lone_request_starts_at_once() -> None:
    doubler = Doubler(may=False)
    batcher = MicroBatcher(doubler, max_size=8, in_flight=1)
    lone = asyncio.ensure_future(batcher.submit(4))
    await _turns_of_the_loop()
    assert doubler.batches == [[4]]
    doubler.may.set()
    assert await lone == 8


async def test_who_comes_while_the_loop_is_busy_is_in_the_batch() -> None:
    doubler = Doubler()
    batcher = MicroBatcher(doubler, max_size=8, in_flight=1)

    async def ask_again_at_once(number: int) -> None:
        await batcher.submit(number)
        for _ in range(number + 1):
            await asyncio.sleep(0)
        await batcher.submit(10 + number)

    await asyncio.gather(*(ask_again_at_once(number) for number in range(5)))
    assert doubler.batches == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]


async def test_a_full_batch_does_not_wait_until_the_loop_is_quiet() -> None:
    doubler = Doubler()
    batcher = MicroBatcher(doubler, max_size=3, in_flight=1)
    coming = []
    for number in range(30):
        coming.append(asyncio.ensure_future(batcher.submit(number)))
        await asyncio.sleep(0)
    assert max(map(len, doubler.batches)) == 3
    assert len(doubler.batches) > 5
    await asyncio.gather(*coming)


async def test_batches_are_no_larger_than_allowed_and_no_more_run_than_allowed() -> None:
    doubler = Doubler()
    batcher = MicroBatcher(doubler, max_size=4, in_flight=2)
    results = await asyncio.gather(*(batcher.submit(number) for number in range(18)))
    assert results == [2 * number for number in range(18)]
    assert max(map(len, doubler.batches)) == 4
    assert doubler.most_running == 2


async def test_an_error_reaches_its_own_batch_only_and_the_next_one_runs() -> None:
    doubler = Doubler()
    batcher = MicroBatcher(doubler, max_size=2, in_flight=1)
    results = await asyncio.gather(*(batcher.submit(number) for number in (1, -13, 2, 3)), return_exceptions=True)
    assert [str(result) for result in results] == ["-13", "-13", "4", "6"]


async def test_a_client_that_left_is_not_computed() -> None:
    doubler = Doubler(may=False)
    batcher = MicroBatcher(doubler, max_size=2, in_flight=1)
    running = asyncio.ensure_future(batcher.submit(1))
    await _turns_of_the_loop()
    left = asyncio.ensure_future(batcher.submit(2))
    stays = asyncio.ensure_future(batcher.submit(3))
    await _turns_of_the_loop()
    left.cancel()
    doubler.may.set()
    assert [await running, await stays] == [2, 6]
    assert doubler.batches == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_a_full_queue_says_when_to_ask_again() -> None:
    released = asyncio.Event()

    async def run(numbers: Sequence[int]) -> Sequence[int]:
        await released.wait()
        return numbers

    batcher = MicroBatcher(run, max_size=2, in_flight=1, max_waiting=3)
    asked = [asyncio.ensure_future(batcher.submit(number)) for number in range(2)]
    await asyncio.sleep(0.005)
    asked += [asyncio.ensure_future(batcher.submit(number)) for number in range(2, 4)]
    await asyncio.sleep(0.005)
    batcher.require_room()
    with pytest.raises(QueueFullError, match="2 requests wait already; ask again in 1 s") as refused:
        batcher.require_room(2)
    assert refused.value.retry_after_s == 1
    released.set()
    assert await asyncio.gather(*asked) == [0, 1, 2, 3]
    batcher.require_room(3)


async def test_items_that_do_not_go_together_keep_their_places() -> None:
    doubler = Doubler()
    batcher = MicroBatcher(doubler, max_size=8, in_flight=1, together=lambda first, other: first % 2 == other % 2)
    results = await asyncio.gather(*(batcher.submit(number) for number in (1, 2, 3, 4, 6, 5)))
    assert results == [2, 4, 6, 8, 12, 10]
    assert doubler.batches == [[1, 3, 5], [2, 4, 6]]
