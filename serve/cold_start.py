"""A deployment that may have no replica: nobody waits for it, and whoever asks for it has one started."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import ray.serve.exceptions
from ray.serve.handle import DeploymentHandle

from serve.ray_failures import REPLICA_FAILURES
from serve.steps import StageColdError

logger = logging.getLogger(__name__)

WARM_FOR_S = 1.0
"""A deployment that was seen to have a replica is not looked at again for so many seconds."""


class ColdStart:
    """Of one deployment, whose replicas have a method `ready`. Belongs to one event loop."""

    def __init__(self, handle: DeploymentHandle[Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds from any origin that never go back."""
        self._handle = handle
        self._clock = clock
        self._warm_until = clock()
        self._starting: asyncio.Task[None] | None = None

    async def require_warm(self) -> None:
        """Raise StageColdError if there is no replica, after having asked for one."""
        if self._clock() < self._warm_until:
            return
        try:
            await self._handle.broadcast("ready").results_async()
        except ray.serve.exceptions.DeploymentUnavailableError as error:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
            raise StageColdError(f"{self._handle.deployment_name} has no replica yet; one is being started") from error
        self._warm_until = self._clock() + WARM_FOR_S

    async def _start(self) -> None:
        """A request that waits is what Ray Serve starts a replica for."""
        try:
            await self._handle.ready.remote()
        except REPLICA_FAILURES as error:
            logger.warning("%s was not started: %s", self._handle.deployment_name, error)
