"""Errors of completions: a problem as everywhere, which holds OpenAI's `error` object as well (RFC 9457, section 3.2).

So our own clients and OpenAI's both read it.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from cluster.errors import TowerlineError
from serve.completion_schemas import CompletionProblem, OpenAiError
from serve.generation import Refused
from serve.problems import RETRY_AFTER, FieldError, Kind, Problem, ProblemError

STARTS_WITHIN_S = 5
"""What a replica of the language model takes to start, about: whoever finds none is told to ask again after that."""

_REFUSALS: dict[str, tuple[Kind, int | None]] = {
    "busy": (Kind.TOO_BUSY, 1),
    "cold": (Kind.UNAVAILABLE, STARTS_WITHIN_S),
    "invalid": (Kind.INVALID_FIELD, None),
    "too_long": (Kind.PROMPT_TOO_LONG, None),
    "too_late": (Kind.TOO_LATE, None),
    "failed": (Kind.UNAVAILABLE, 1),
}
"""A refusal's kind of problem, and after how many seconds to ask again."""

_CODES = {
    Kind.PROMPT_TOO_LONG: "context_length_exceeded",
    Kind.UNKNOWN_MODEL: "model_not_found",
    Kind.TOO_BUSY: "rate_limit_exceeded",
}
"""Where OpenAI has a code of its own."""
_CODES_BY_URN = {kind.urn: code for kind, code in _CODES.items()}

RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": CompletionProblem, "description": "The body is not valid JSON"},
    404: {"model": CompletionProblem, "description": "No such model"},
    408: {"model": Problem, "description": "The body did not come in time"},
    413: {"model": Problem, "description": "The body is too large"},
    415: {"model": CompletionProblem, "description": "The body is not declared as JSON"},
    422: {"model": CompletionProblem, "description": "A field is invalid or unknown, or the prompt is too long"},
    500: {"model": Problem, "description": "Something broke on our side"},
    429: {"model": CompletionProblem, "description": "Too many completions wait", "headers": RETRY_AFTER},
    503: {"model": CompletionProblem, "description": "The language model is being started", "headers": RETRY_AFTER},
    504: {"model": CompletionProblem, "description": "The time for the completion is over"},
}
"""The errors of a completion, for the documentation."""


def refusal(refused: Refused, prompt_field: str) -> ProblemError:
    """A completion that was refused as a problem. `prompt_field`: what the request calls its prompt."""
    kind, retry_after_s = _REFUSALS[refused.reason]
    detail = refused.detail if retry_after_s is None else f"{refused.detail}; ask again in {retry_after_s} s"
    errors = [FieldError(field=prompt_field, message=detail)] if refused.reason in ("invalid", "too_long") else []
    return ProblemError(kind, detail, errors, retry_after_s)


def openai_error(error: ProblemError) -> OpenAiError:
    """The same as OpenAI says it."""
    return _openai_error(error.kind.urn, error.kind.value[0].value, error.detail, error.errors[:1])


def completion_problem(problem: Problem) -> CompletionProblem:
    """A problem with the same as OpenAI says it."""
    error = _openai_error(problem.type, problem.status, problem.detail, problem.errors[:1])
    return CompletionProblem(**dict(problem), error=error)


def _openai_error(urn: str, status: int, detail: str, errors: tuple[FieldError, ...]) -> OpenAiError:
    return OpenAiError(
        message=detail,
        type="rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error",
        param=errors[0].field if errors else None,
        code=_CODES_BY_URN.get(urn, urn.rpartition(":")[2].replace("-", "_")),
    )


class OpenAiRoute(APIRoute):
    """A route whose errors hold OpenAI's as well."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_as_openai(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, HTTPException, ProblemError, TowerlineError) as error:
                handlers = request.app.exception_handlers
                handler = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)
                return _with_openai_error(await handler(request, error))

        return handle_as_openai


def _with_openai_error(response: Response) -> Response:
    problem = completion_problem(Problem.model_validate_json(bytes(response.body)))
    document = problem.model_dump(exclude_defaults=True)
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Response(json.dumps(document, ensure_ascii=False).encode(), response.status_code, headers)
