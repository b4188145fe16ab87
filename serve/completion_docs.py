"""What the OpenAPI document says of completions: their answers as events, and their problems, with examples."""

import json
from typing import Any

from serve.completion_schemas import CompletionProblem
from serve.completion_stream import CHAT_CHUNKS, DONE, TEXT_CHUNKS, ChunkFormat
from serve.generation import FINGERPRINT, MODEL
from serve.openai_errors import completion_problem
from serve.problems import FieldError, Kind, Problem, problem_of

RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds after which to ask again"}}

_PROBLEMS: tuple[tuple[Kind, str, str | None], ...] = (
    (Kind.BROKEN_JSON, "Expecting value at character 12", "body"),
    (Kind.UNKNOWN_MODEL, f"there is no language model 'gpt-9' here; ask {MODEL!r}", "model"),
    (Kind.NOT_JSON, "send the body as JSON with the header Content-Type: application/json", "Content-Type"),
    (Kind.INVALID_FIELD, "best_of: Extra inputs are not permitted", "best_of"),
    (Kind.TOO_BUSY, "20 completions are being written or wait for it already; ask again in 1 s", None),
    (Kind.DEFECT, "the failure has been logged; try again or report it with the time of the request", None),
    (Kind.UNAVAILABLE, "ExplainReplica has no replica yet; one is being started; ask again in 5 s", None),
    (Kind.TOO_LATE, "the completion was not finished within 40 s", None),
)
"""The most usual problem of each status, and the field that is to blame."""


def _events(chunks: ChunkFormat) -> str:
    """A stream of two chunks."""
    shared = {
        "id": "cmpl-0f8fad5b",
        "object": chunks.object,
        "created": 1714564800,
        "model": MODEL,
        "system_fingerprint": FINGERPRINT,
    }
    choices = ({**chunks.piece("Paris"), "finish_reason": None}, {**chunks.closing, "finish_reason": "stop"})
    written = [{**shared, "choices": [{"index": 0, **choice, "logprobs": None}]} for choice in choices]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in written) + DONE.decode()


CHAT_EVENTS = _events(CHAT_CHUNKS)
TEXT_EVENTS = _events(TEXT_CHUNKS)


def responses(path: str, events: str) -> dict[int | str, dict[str, Any]]:
    """The responses of one kind of completion, asked for at `path`, but for the whole completion itself.

    A body that is too large, or a defect, is a problem like any other endpoint's.
    """
    streamed = {"schema": {"type": "string"}, "examples": {"events": {"value": events}}}
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The completion; as server-sent events if `stream` is true",
            "content": {"text/event-stream": streamed},
        },
        413: {"model": Problem, "description": Kind.BODY_TOO_LARGE.value[1]},
    }
    for kind, detail, field in _PROBLEMS:
        errors = [] if field is None else [FieldError(field=field, message=detail)]
        status, title = kind.value
        problem = problem_of(kind, detail, path, errors)
        plain = kind is Kind.DEFECT
        document = problem.model_dump(exclude_defaults=True) if plain else completion_problem(problem)
        found[status.value] = {
            "model": Problem if plain else CompletionProblem,
            "description": title,
            "content": {"application/json": {"examples": {title: {"value": document}}}},
            **({"headers": RETRY_AFTER} if kind in (Kind.TOO_BUSY, Kind.UNAVAILABLE) else {}),
        }
    return found
