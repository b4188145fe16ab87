"""How a new champion takes over while requests are answered: loaded beside the old one, warmed up, then swapped.

So do new items of the data set: the variant that serves is made again with them, and takes over from itself.

Every request is answered by one `Service` from beginning to end, and a service has one variant. The old one is closed
when the last of its requests has its answer. A champion that cannot be loaded, or does not answer its first probe, is
refused: the one before goes on serving, and `/healthz` says why.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from cluster.settings import Settings
from serve.decisions import DecisionLog
from serve.inspection_schemas import ModelsResponse
from serve.metrics import Metrics
from serve.problems import Kind, ProblemError
from serve.schemas import Health
from serve.service import Service
from train.ledger import newest_number, read_ledger
from train.tracking import connect

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300.0
"""Between two attempts to load a champion that was refused."""


class Champions:
    """Looks who is champion. Blocks; reads the whole ledger only when it has grown."""

    def __init__(self, settings: Settings, dataset: str) -> None:
        self._address = settings.tracking_uri
        self._dataset = dataset
        self._seen = 0
        self._champion: str | None = None

    def look(self) -> str | None:
        """The name of the champion. Raises what the registry raises when it cannot be asked."""
        newest = newest_number(connect(self._address), self._dataset)
        if newest != self._seen:
            self._champion = read_ledger(self._address, self._dataset).champion
            self._seen = newest
        return self._champion


@dataclass
class _InUse:
    service: Service
    requests: int = 0
    retired: bool = False


class Live:
    """The service that answers now, and who is to be next. Belongs to one event loop."""

    def __init__(
        self,
        first: Service,
        decisions: DecisionLog,
        champion: str | None = None,
        refused: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`decisions`: the log that all its services write to. `metrics`: of the process.

        `champion`: the variant that the registry names, if it is not the first service's; `refused`: why it is not.
        """
        self.metrics = metrics or Metrics()
        """What is measured here."""
        self.metrics.serves(first.variant, first.versions)
        self._decisions = decisions
        self._current = _InUse(first)
        self._champion = champion or first.variant
        self._refused = refused
        self._failures = 0
        self._next_try = 0.0
        self._under_way = 0
        self._closing: asyncio.Future[None] | None = None

    @contextmanager
    def serving(self) -> Iterator[Service]:
        """The service for one request, which nobody closes meanwhile. Raises `ProblemError` once all is shut down."""
        if self._closing is not None:
            detail = "this replica is being shut down; ask again, and another one answers"
            raise ProblemError(Kind.UNAVAILABLE, detail, retry_after_s=1)
        used = self._current
        used.requests += 1
        self._under_way += 1
        try:
            yield used.service
        finally:
            used.requests -= 1
            _close_if_unused(used)
            self._left()

    def _left(self) -> None:
        self._under_way -= 1
        if self._closing is not None and not self._under_way:
            self._closing.set_result(None)

    def load(self) -> dict[str, float]:
        """How busy the service that answers now was since the last call."""
        return self._current.service.load()

    async def health(self) -> Health:
        """The serving variant's answer to a probe, and who is champion. Raises `ProblemError` if it has none."""
        with self.serving() as service:
            health = await service.health()
        return health.model_copy(update={"champion": self._champion, "refused": self._refused})

    async def models(self) -> ModelsResponse:
        """The variants that answer, and who is champion."""
        with self.serving() as service:
            return ModelsResponse(
                data=service.language_models(),
                champion=self._champion,
                refused=self._refused,
                data_version=await asyncio.to_thread(service.data_version),
                variants=(service.models(),),
            )

    async def close(self) -> None:
        """Take no more requests, answer those under way, close the service; write what is left of log and metrics."""
        self._closing = asyncio.get_running_loop().create_future()
        if self._under_way:
            await self._closing
        self._current.service.close()
        await asyncio.to_thread(self._decisions.close)
        await asyncio.to_thread(self.metrics.close)

    @asynccontextmanager
    async def following(
        self,
        look: Callable[[], str | None],
        prepare: Callable[[str], Awaitable[Service]],
        poll_s: float,
        has_grown: Callable[[Service], bool] = lambda _: False,
    ) -> AsyncIterator[None]:
        """Look for another champion every `poll_s` seconds until the block ends, and take over what it needs.

        `has_grown`: whether there are other new items than those that a service answers with. As `look`, it may block
        and raise.
        """
        task = asyncio.create_task(self._follow(look, prepare, poll_s, has_grown))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(
        self,
        look: Callable[[], str | None],
        prepare: Callable[[str], Awaitable[Service]],
        poll_s: float,
        has_grown: Callable[[Service], bool],
    ) -> None:
        silent = False
        while True:
            await asyncio.sleep(poll_s)
            # An exporter forgets a gauge that is not set again and again.
            self.metrics.serves(self._current.service.variant, self._current.service.versions)
            try:
                champion = await asyncio.to_thread(look)
                grown = await asyncio.to_thread(has_grown, self._current.service)
            except Exception:
                if not silent:
                    logger.exception(
                        "the registry cannot be asked for the champion, or the data set for new items; what serves "
                        "goes on"
                    )
                silent = True
                continue
            silent = False
            if champion is not None:
                await self.follow(champion, prepare, poll_s, grown=grown)

    async def follow(
        self,
        champion: str,
        prepare: Callable[[str], Awaitable[Service]],
        pause_s: float = 0.0,
        *,
        grown: bool = False,
    ) -> None:
        """Let a variant answer from now on, unless it does already, and all its items if they have `grown`.

        What was refused is tried again, ever later.
        """
        if champion != self._champion:
            self._champion, self._refused, self._failures, self._next_try = champion, None, 0, 0.0
        serving = self._current.service.edition
        if champion == serving.variant and not grown:
            self._refused = None
            return
        if time.monotonic() < self._next_try:
            return
        try:
            service = await prepare(champion)
        except Exception as error:
            # Whatever is wrong with the new one, the old one works.
            self._refused = str(error)
            self._failures += 1
            self._next_try = time.monotonic() + min(LONGEST_PAUSE_S, pause_s * 2**self._failures)
            logger.exception("variant %s is refused, %s goes on serving", champion, serving)
            return
        old, self._current = self._current, _InUse(service)
        old.retired = True
        self.metrics.serves(old.service.variant, old.service.versions, now=False)
        self.metrics.serves(service.variant, service.versions)
        self._refused = None
        _close_if_unused(old)
        self._failures = 0
        logger.warning("variant %s serves now, %s no longer", service.edition, serving)


def _close_if_unused(used: _InUse) -> None:
    if used.retired and not used.requests:
        used.service.close()
