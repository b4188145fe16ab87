"""Micro-batching: requests that come in together are answered together, and no timer makes anyone wait for company."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.load_meter import LoadMeter

Item = TypeVar("Item")
Result = TypeVar("Result")
SMOOTHING = 0.2
"""Weight of the newest batch in the time that one usually takes."""
QUIET_TURNS = 8
"""Turns of the event loop that bring nothing new, after which a batch begins. In an idle process they take 0.1 ms; in a
busy one, answers of the batch before go out and their clients' next requests come in meanwhile. A batch of many costs
little more than a batch of few."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[Result]"
    since: float


class QueueFullError(Exception):
    """So many items wait that another one is refused."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests wait already; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s
        """Whole seconds after which there should be room, at the pace of the last batches."""


class MicroBatcher(Generic[Item, Result]):
    """Hands everything that waits to `run` in one call, when fewer than `in_flight` calls are running.

    It does so once the event loop has nothing else to do (`QUIET_TURNS`) or `max_size` items wait: a lone request
    starts at once, and under load the batches grow with the time that one takes. Belongs to one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        max_size: int,
        in_flight: int,
        together: Callable[[Item, Item], bool] = lambda _, __: True,
        max_waiting: float = math.inf,
    ) -> None:
        """`together`: whether an item may be in the batch of the one that has waited longest.

        `max_waiting`: items that may wait, those that are being run not counted.
        """
        self._run = run
        self._in_flight = in_flight
        self._max_waiting = max_waiting
        self._usual_s = 0.0
        self._together = together
        self._max_size = max_size
        self._free = in_flight
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self.load = LoadMeter(max_size)
        """How busy it is."""
        self._gathering: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    def require_room(self, count: int = 1) -> None:
        """Raise QueueFullError if so many more items may not wait."""
        waiting = len(self._waiting)
        if waiting + count > self._max_waiting:
            batches = math.ceil((waiting + count) / (self._max_size * self._in_flight))
            raise QueueFullError(waiting, max(1, math.ceil(batches * self._usual_s)))

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """The result of `item`, computed together with what else waits now. It waits from now on, even without room.

        Awaiting it raises whatever `run` raised for the batch that the item was in.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(item, future, time.monotonic()))
        self.load.arrived()
        self._gather()
        return future

    def _gather(self) -> None:
        if self._free and self._waiting and self._gathering is None:
            self._gathering = asyncio.ensure_future(self._start_when_quiet())

    async def _start_when_quiet(self) -> None:
        quiet, waiting = 0, len(self._waiting)
        while quiet < QUIET_TURNS and waiting < self._max_size:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == waiting else 0
            waiting = len(self._waiting)
        self._gathering = None
        self._start()

    def _start(self) -> None:
        while self._free and self._waiting:
            batch = self._take()
            if not batch:
                return
            self._free -= 1
            task = asyncio.ensure_future(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[_Entry[Item, Result]]:
        """The next requests whose clients still wait for them."""
        batch: list[_Entry[Item, Result]] = []
        others: list[_Entry[Item, Result]] = []
        while self._waiting and len(batch) < self._max_size:
            entry = self._waiting.popleft()
            if not entry.future.done():
                fits = not batch or self._together(batch[0].item, entry.item)
                (batch if fits else others).append(entry)
        self._waiting.extendleft(reversed(others))
        return batch

    async def _answer(self, batch: list[_Entry[Item, Result]]) -> None:
        start = time.monotonic()
        self.load.started([start - entry.since for entry in batch])
        try:
            results = await self._run([entry.item for entry in batch])
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    entry.future.set_result(result)
        except BaseException as error:
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._usual_s += SMOOTHING * (time.monotonic() - start - self._usual_s)
            self._free += 1
            self._gather()
