"""The sentences for those who asked for them: beside the graph, so that nobody else waits for the language model."""

import asyncio
import logging
import time
from collections.abc import Sequence

from serve.batch import Batch
from serve.steps import StageUnavailableError, Step

logger = logging.getLogger(__name__)


class Explaining:
    """Takes batches of requests that want sentences. Belongs to one event loop."""

    def __init__(self, steps: Sequence[Step], *, timeout_s: float, places: int) -> None:
        """`steps`: what writes the sentences; none if nothing does. `places`: requests at once. `timeout_s` seconds."""
        self._steps = tuple(steps)
        self._timeout_s = timeout_s
        self._places = places

    def start(self, batch: Batch, deadline: float) -> "asyncio.Task[Batch | None] | None":
        """Begin with those of a ranked batch who ask for sentences; None if there is nobody, or no place, or no facts.

        The task gives their batch with sentences, None if they did not come in time: before `deadline` where the
        requests brought a budget.
        """
        wanted = [row for row, call in enumerate(batch.calls) if call.explain]
        if not self._steps or not wanted or not batch.item_features.height or len(wanted) > self._places:
            return None
        return asyncio.ensure_future(self._explain(batch.select(wanted), deadline))

    async def _explain(self, batch: Batch, deadline: float) -> Batch | None:
        if all(call.budget_s is None for call in batch.calls):
            deadline = time.monotonic() + self._timeout_s
        self._places -= len(batch)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                for step in self._steps:
                    batch = await step(batch, deadline)
                return batch
        except (StageUnavailableError, TimeoutError) as error:
            logger.warning("%d answers go without explanation: %s", len(batch), error or "it took too long")
            return None
        finally:
            self._places += len(batch)
