"""Errors as RFC 9457 problem JSON that names the field, the value and what is wrong with it."""

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import TowerlineError
from serve.disconnects import CLIENT_GONE, ClientGoneError

MEDIA_TYPE = "application/problem+json"
MAX_SHOWN = 200
BODY_TIMEOUT_S = 15.0
"""Seconds within which a request's body has to come; with a request's own limit that is less than Ray Serve's."""
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds after which to ask again"}}
"""Header of a problem that may be over by then, for the documentation."""

logger = logging.getLogger(__name__)


class FieldError(BaseModel):
    """What is wrong with one field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    """Path of the field, such as `count` or `events[2].value`; `body` for the body as a whole."""

    message: str
    value: str | int | float | bool | None = None
    """What was sent, shortened; left out where there is nothing to show."""


class Problem(BaseModel):
    """An RFC 9457 problem."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    """A URN that names the kind of problem and stays the same."""

    title: str
    status: int
    detail: str
    instance: str
    """The path that was asked."""

    errors: tuple[FieldError, ...] = ()


class Kind(Enum):
    """The kinds of problem: status and title. The name is the end of the type URN."""

    BROKEN_JSON = (HTTPStatus.BAD_REQUEST, "The body is not valid JSON")
    BAD_REQUEST = (HTTPStatus.BAD_REQUEST, "The request cannot be read")
    UNKNOWN_ITEM = (HTTPStatus.NOT_FOUND, "No such item")
    UNKNOWN_MODEL = (HTTPStatus.NOT_FOUND, "No such model")
    UNKNOWN_ROUTE = (HTTPStatus.NOT_FOUND, "No such address")
    WRONG_METHOD = (HTTPStatus.METHOD_NOT_ALLOWED, "This address does not take that method")
    BODY_TOO_SLOW = (HTTPStatus.REQUEST_TIMEOUT, "The body did not come in time")
    BODY_TOO_LARGE = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large")
    NOT_JSON = (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not declared as JSON")
    INVALID_FIELD = (HTTPStatus.UNPROCESSABLE_ENTITY, "A field is missing or invalid")
    PROMPT_TOO_LONG = (HTTPStatus.UNPROCESSABLE_ENTITY, "The prompt is longer than the model can read")
    TOO_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, "Too many requests wait")
    DEFECT = (HTTPStatus.INTERNAL_SERVER_ERROR, "Something broke on our side")
    UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE, "The service cannot answer now")
    TOO_LATE = (HTTPStatus.GATEWAY_TIMEOUT, "The time for the answer is over")

    @property
    def urn(self) -> str:
        return f"urn:towerline:problem:{self.name.lower().replace('_', '-')}"


class ProblemError(Exception):
    """Raised by a handler; becomes problem JSON."""

    def __init__(
        self, kind: Kind, detail: str, errors: Sequence[FieldError] = (), retry_after_s: int | None = None
    ) -> None:
        """`retry_after_s`: whole seconds after which it makes sense to ask again."""
        super().__init__(detail)
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)


def problem_of(kind: Kind, detail: str, path: str, errors: Sequence[FieldError] = ()) -> Problem:
    """One problem with what was asked at `path`; never fails, whatever the client sent."""
    status, title = kind.value
    return Problem(
        type=kind.urn,
        title=title,
        status=status.value,
        detail=_clean(detail),
        instance=quote(path, safe="/:", errors="replace"),
        errors=tuple(errors),
    )


def problem_response(
    kind: Kind,
    detail: str,
    path: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response for one problem, as `problem_of`."""
    document = problem_of(kind, detail, path, errors).model_dump(exclude_defaults=True)
    body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, kind.value[0].value, dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI, max_body: int, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
    """Make every error of `app` a problem, an unforeseen exception included.

    A body over `max_body` bytes is one, and so is one that does not come within `body_timeout_s`.
    """
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(TowerlineError, _on_towerline)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_middleware(BodyLimit, max_body=max_body, timeout_s=body_timeout_s)
    app.add_middleware(LastResort)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    path = request.scope["path"]
    if found and found[0]["type"] == "json_invalid":
        reason = f"{found[0].get('ctx', {}).get('error', 'broken')} at character {found[0]['loc'][-1]}"
        return problem_response(Kind.BROKEN_JSON, reason, path, [FieldError(field="body", message=reason)])
    if any(each["loc"] == ("body",) and isinstance(each.get("input"), bytes) for each in found):
        detail = "send the body as JSON with the header Content-Type: application/json"
        return problem_response(Kind.NOT_JSON, detail, path, [FieldError(field="Content-Type", message=detail)])
    errors = [_field_error(each) for each in found]
    detail = "; ".join(f"{each.field}: {each.message}" for each in errors[:5])
    if len(errors) > 5:
        detail += f"; and {len(errors) - 5} more"
    return problem_response(Kind.INVALID_FIELD, detail, path, errors[:100])


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    kinds = {kind.value[0].value: kind for kind in (Kind.UNKNOWN_ROUTE, Kind.WRONG_METHOD, Kind.BAD_REQUEST)}
    kind = kinds.get(error.status_code, Kind.BAD_REQUEST if error.status_code < 500 else Kind.UNAVAILABLE)
    detail = str(error.detail)
    if kind is Kind.UNKNOWN_ROUTE:
        detail = f"there is nothing at {path}; see /docs"
    elif kind is Kind.WRONG_METHOD:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} is not allowed here; use {allowed}"
    return problem_response(kind, detail, path, headers=error.headers)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(error.kind, error.detail, request.scope["path"], error.errors, error.headers)


async def _on_towerline(request: Request, error: Exception) -> Response:
    logger.error("%s %s: %s", request.method, request.scope["path"], error)
    return problem_response(Kind.UNAVAILABLE, str(error), request.scope["path"])


async def _on_client_gone(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=CLIENT_GONE)


def field_path(location: Sequence[int | str]) -> str:
    """`events[2].value` for a location such as pydantic gives: ("events", 2, "value")."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _field_error(error: Mapping[str, Any]) -> FieldError:
    """One pydantic error (`loc`, `type`, `msg`, `input`) as a field error."""
    location = error["loc"][1:] if len(error["loc"]) > 1 else error["loc"]
    shown = None if error["type"] == "missing" else _shown(error.get("input"))
    return FieldError(field=_clean(field_path(location)), message=_clean(error["msg"]), value=shown)


def _shown(value: object) -> str | int | float | bool | None:
    """A value that fits in a JSON answer, however odd or long the one that was sent."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    text = value if isinstance(value, str) else f"{value!r:.{MAX_SHOWN + 1}}"
    return _clean(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def _clean(text: str) -> str:
    """Replace what UTF-8 cannot say (lone surrogates)."""
    return text.encode(errors="replace").decode()


class BodyLimit:
    """ASGI middleware: the application is asked when the whole body is there, and not at all if that is no use.

    413 for a body over `max_body` bytes, by its declared or, failing that, its real length; 408 for one that takes too
    long. Nobody is left to answer where the client hung up before its end.
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout_s: float) -> None:
        self.app = app
        self.max_body = max_body
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            detail = f"the body did not come within {self.timeout_s:g} s; send it faster, or less at a time"
            refused = problem_response(Kind.BODY_TOO_SLOW, detail, scope["path"], headers={"Connection": "close"})
            await refused(scope, receive, send)
            return
        if body is None:
            detail = f"the body is over {self.max_body} bytes; send less at a time"
            errors = [FieldError(field="body", message=detail)]
            await problem_response(Kind.BODY_TOO_LARGE, detail, scope["path"], errors)(scope, receive, send)
        elif body[-1]["type"] == "http.request":
            await self.app(scope, replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """The messages of the body, up to its end or to the client's leaving; None if there is too much of it."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self.max_body:
            return None
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.max_body:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def replay(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages before all others."""
    waiting = iter(messages)

    async def replayed() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replayed


class LastResort:
    """ASGI middleware: what nobody foresaw becomes a 500 without a traceback; the traceback goes to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noticing(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noticing)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            detail = "the failure has been logged; try again or report it with the time of the request"
            await problem_response(Kind.DEFECT, detail, scope["path"])(scope, receive, send)
