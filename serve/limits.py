"""No request waits without end: how long it may take, and how many may use the store's threads at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.problems import Kind, ProblemError

REQUEST_TIMEOUT_S = 40.0
MAX_IN_THREADS = 64
"""Requests that read or write the store in threads of their own, those that wait for a thread included."""


class Limits:
    """Of one gateway replica."""

    def __init__(self, request_timeout_s: float = REQUEST_TIMEOUT_S, places: int = MAX_IN_THREADS) -> None:
        self._request_timeout_s = request_timeout_s
        self._places = places

    @asynccontextmanager
    async def timed(self) -> AsyncIterator[None]:
        """Around a request. Raises `ProblemError` when it has taken too long."""
        try:
            async with asyncio.timeout(self._request_timeout_s) as timer:
                yield
        except TimeoutError as error:
            if not timer.expired():
                raise
            detail = (
                f"there is no answer within {self._request_timeout_s:g} s; events that were sent may be stored or not, "
                "and events with an event_id can safely be sent again"
            )
            raise ProblemError(Kind.TOO_LATE, detail) from error

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Around what is done in a thread. Raises `ProblemError` when all places are taken."""
        if not self._places:
            raise ProblemError(
                Kind.TOO_BUSY, "too many requests use the online store; ask again in 1 s", retry_after_s=1
            )
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1
