"""ASGI middleware that counts and times requests, around everything else: refused and broken ones count too."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.disconnects import CLIENT_GONE
from serve.metrics import Metrics

ELSEWHERE = "other"
"""Endpoint of a request for which there is no route: its path is the client's invention, and no label."""


class Measured:
    """Around an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = str(CLIENT_GONE)
        start = time.perf_counter()

        async def noticing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noticing)
        finally:
            route = scope.get("route")
            endpoint = ELSEWHERE if route is None else route.path_format
            self._metrics.request(endpoint, status, time.perf_counter() - start)
