"""The step that re-ranks for cold users: within a time of its own, and for so many of them at once.

Whatever keeps it from doing so leaves the ranker's order, and the answer says so (`degraded`).
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence

from cluster.errors import TowerlineError
from data.schema import USER_EVENT_COUNT
from serve.batch import Batch
from serve.steps import StageUnavailableError, Step

logger = logging.getLogger(__name__)


class Reranking:
    """Takes batches of cold users only. Belongs to one event loop."""

    def __init__(
        self, steps: Sequence[Step], below_events: int, *, timeout_s: float, share: float, places: int
    ) -> None:
        """`steps`: what re-ranks. Users of whom fewer than `below_events` events are known are cold.

        It may take `timeout_s` seconds, and `share` of the time that is left. `places`: requests that are re-ranked at
        once.
        """
        self._steps = tuple(steps)
        self._below_events = below_events
        self._timeout_s = timeout_s
        self._share = share
        self._places = places

    def cold(self, batch: Batch) -> list[int]:
        """The rows whose users have few events, but something to be judged by: an event or an attribute.

        None where the ranker was left out: that another order than its own is better is not known of any other.
        """
        if "ranking" in batch.degraded:
            return []
        rows = enumerate(zip(batch.users[USER_EVENT_COUNT].to_list(), batch.known, strict=True))
        return [row for row, (events, known) in rows if events < self._below_events and (events or known)]

    async def __call__(self, batch: Batch, deadline: float) -> Batch:
        """The batch in the new order, or as it was."""
        if len(batch) > self._places:
            logger.warning("%d answers are not re-ranked: too many others are just now", len(batch))
            return _left(batch)
        self._places -= len(batch)
        try:
            return await self._rerank(batch, deadline)
        except (StageUnavailableError, TowerlineError, TimeoutError) as error:
            logger.warning("%d answers are not re-ranked: %s", len(batch), error or "it took too long")
            return _left(batch)
        finally:
            self._places += len(batch)

    async def _rerank(self, batch: Batch, deadline: float) -> Batch:
        now = time.monotonic()
        budget_s = min(self._timeout_s, self._share * (deadline - now))
        reranked = dataclasses.replace(batch, budget_s=budget_s)
        async with asyncio.timeout(budget_s):
            for step in self._steps:
                reranked = await step(reranked, now + budget_s)
        return dataclasses.replace(reranked, budget_s=batch.budget_s)


def _left(batch: Batch) -> Batch:
    return dataclasses.replace(batch, degraded=(*batch.degraded, "rerank"))
