"""What is done when a client hangs up before it has its answer: the work for it is given up.

HAProxy tells Ray Serve not to watch for that where requests are many and short (`cluster/haproxy.sh`): Ray takes three
tasks for each of them, this takes a timer.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

Result = TypeVar("Result")

CLIENT_GONE = 499
"""Status of a request whose client hung up, as nginx counts it; nobody reads it."""
WATCHED_AFTER_S = 0.25
"""Seconds after which a request's client is watched: most have their answer by then."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientGoneError then.

    `receive`: of a request whose body was read. Belongs to the task that answers the request.
    """
    answering = asyncio.current_task()
    assert answering is not None
    watching: asyncio.Task[None] | None = None
    gone = False

    def watch() -> None:
        nonlocal watching
        watching = asyncio.create_task(_gone(receive))
        watching.add_done_callback(hung_up)

    def hung_up(_: "asyncio.Task[None]") -> None:
        nonlocal gone
        gone = answering.cancel()

    timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not answering.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()
        if watching is not None:
            watching.remove_done_callback(hung_up)
            watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
