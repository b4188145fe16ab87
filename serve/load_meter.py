"""How busy a replica is, in the terms that autoscaling policies ask for."""

import time
from collections.abc import Callable, Sequence

from serve.autoscaling import BATCH_FILL, QUEUE_MS, REQUESTS_PER_S


class LoadMeter:
    """Counts requests and the micro-batches that they are answered in. Belongs to one event loop."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`batch_size`: requests of a full batch; `clock`: seconds."""
        self._batch_size = batch_size
        self._clock = clock
        self._begin(clock())

    def arrived(self) -> None:
        """A request came."""
        self._requests += 1

    def started(self, waited_s: Sequence[float]) -> None:
        """A batch began, whose requests had waited so long."""
        self._batches += 1
        self._taken += len(waited_s)
        self._waited_s += sum(waited_s)

    def read(self) -> dict[str, float]:
        """What Ray Serve's `record_autoscaling_stats` is to return: means since the last reading."""
        now = self._clock()
        stats = {REQUESTS_PER_S: self._requests / max(now - self._since, 1e-9), QUEUE_MS: 0.0, BATCH_FILL: 0.0}
        if self._batches:
            stats[QUEUE_MS] = 1e3 * self._waited_s / self._taken
            stats[BATCH_FILL] = self._taken / (self._batches * self._batch_size)
        self._begin(now)
        return stats

    def _begin(self, now: float) -> None:
        self._since = now
        self._requests = self._batches = self._taken = 0
        self._waited_s = 0.0
