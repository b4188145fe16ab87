"""`/v1/chat/completions` and `/v1/completions`: OpenAI's protocol over the language model, as routes without Ray."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response

from serve.completion_schemas import (
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Sampling,
    TextChoice,
)
from serve.completion_stream import (
    CHAT_CHUNKS,
    TEXT_CHUNKS,
    ChunkFormat,
    Events,
    EventStream,
    usage_of,
)
from serve.disconnects import unless_gone
from serve.generation import (
    SMOLLM2_BY_LLAMA,
    CompletionsConfig,
    End,
    Identity,
    LanguageModel,
    Message,
    Piece,
    Refused,
    Text,
)
from serve.limits import REQUEST_TIMEOUT_S
from serve.openai_errors import RESPONSES, OpenAiRoute, openai_error, refusal
from serve.problems import FieldError, Kind, ProblemError

Result = TypeVar("Result")

_AS_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion; as server-sent events if `stream` is true",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@dataclass(frozen=True)
class Asked:
    """A completion that is asked for, in either way."""

    request: Sampling
    prompt: str | tuple[Message, ...]
    prompt_field: str
    """What the request calls its prompt."""
    max_tokens: int | None
    tokens_field: str
    """What the request calls the most tokens."""
    chunks: ChunkFormat
    id: str
    created: int
    """Seconds since the epoch."""

    @classmethod
    def chat(cls, request: ChatRequest) -> "Asked":
        """The next turn of a conversation."""
        newer = request.max_completion_tokens is not None
        return cls(
            request=request,
            prompt=tuple(message.message() for message in request.messages),
            prompt_field="messages",
            max_tokens=request.max_completion_tokens if newer else request.max_tokens,
            tokens_field="max_completion_tokens" if newer else "max_tokens",
            chunks=CHAT_CHUNKS,
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
        )

    @classmethod
    def text(cls, request: CompletionRequest) -> "Asked":
        """What follows a text."""
        return cls(
            request=request,
            prompt=request.prompt,
            prompt_field="prompt",
            max_tokens=request.max_tokens,
            tokens_field="max_tokens",
            chunks=TEXT_CHUNKS,
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
        )

    def whole(self, model: Identity, text: str, end: End) -> ChatCompletion | Completion:
        """The answer in one piece."""
        head: dict[str, Any] = {
            "id": self.id,
            "created": self.created,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
            "usage": usage_of(end),
        }
        if self.chunks is CHAT_CHUNKS:
            chat = ChatChoice(message=ChatAnswer(content=text), finish_reason=end.reason)
            return ChatCompletion(**head, choices=(chat,))
        return Completion(**head, choices=(TextChoice(text=text, finish_reason=end.reason),))

    def events(self, model: Identity) -> Events:
        """The answer while it is written."""
        return Events(
            self.chunks,
            model,
            self.id,
            self.created,
            self.request.includes_usage,
            lambda refused: openai_error(refusal(refused, self.prompt_field)),
        )


class Completions:
    """Answers requests with one language model."""

    def __init__(
        self, model: LanguageModel, identity: Identity, config: CompletionsConfig, request_timeout_s: float
    ) -> None:
        self._model = model
        self._identity = identity
        self._config = config
        self._too_late = Refused("too_late", f"the completion was not finished within {request_timeout_s:g} s")
        self._timeout_s = request_timeout_s

    async def answer(self, asked: Asked, http: Request) -> ChatCompletion | Completion | Response:
        """The completion, whole or as events. Raises ClientGoneError, and `ProblemError` until some of it was sent."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        pieces = self._model.write(asked.request.question(asked.prompt, self._max_tokens(asked)))
        if asked.request.stream:
            return await self._stream(asked, pieces, http, deadline)
        async with aclosing(pieces):
            text, end = await self._in_time(asked, http, deadline, _all(asked, pieces))
            return asked.whole(self._identity, text, end)

    async def _stream(
        self, asked: Asked, pieces: AsyncGenerator[Piece, None], http: Request, deadline: float
    ) -> EventStream:
        """Once the first piece is there: until then, an error can still have a status of its own."""
        try:
            first = await self._in_time(asked, http, deadline, _next(asked, pieces))
        except BaseException:
            await pieces.aclose()
            raise
        return EventStream(asked.events(self._identity), first, pieces, deadline, self._too_late)

    async def _in_time(self, asked: Asked, http: Request, deadline: float, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            async with asyncio.timeout_at(deadline) as timer:
                return await unless_gone(http.receive, work)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise refusal(self._too_late, asked.prompt_field) from error

    def _max_tokens(self, asked: Asked) -> int:
        """What the language model is told. Raises `ProblemError` for an unknown model and for too many tokens."""
        model, here, most = asked.request.model, self._identity.name, self._config.max_tokens
        if model != here:
            detail = f"there is no language model {model!r} here; ask {here!r}"
            raise ProblemError(Kind.UNKNOWN_MODEL, detail, [FieldError(field="model", message=detail, value=model)])
        if asked.max_tokens is None:
            return most
        if asked.max_tokens > most:
            message = f"is {asked.max_tokens}; this endpoint writes {most} tokens at most"
            error = FieldError(field=asked.tokens_field, message=message, value=asked.max_tokens)
            raise ProblemError(Kind.INVALID_FIELD, f"{asked.tokens_field} {message}", [error])
        return asked.max_tokens


async def _next(asked: Asked, pieces: AsyncGenerator[Piece, None]) -> Text | End:
    """The next piece. Raises `ProblemError` if the completion is refused."""
    piece = await anext(pieces)
    if isinstance(piece, Refused):
        raise refusal(piece, asked.prompt_field)
    return piece


async def _all(asked: Asked, pieces: AsyncGenerator[Piece, None]) -> tuple[str, End]:
    """The whole text and its end. Raises `ProblemError` if the completion is refused."""
    texts = []
    while isinstance(piece := await _next(asked, pieces), Text):
        texts.append(piece.text)
    return "".join(texts), piece


def add_completions(
    app: FastAPI,
    model: LanguageModel,
    config: CompletionsConfig,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    identity: Identity = SMOLLM2_BY_LLAMA,
) -> None:
    """Add the routes to `app`, whose errors are problems already (`serve.problems.install`).

    A completion that takes longer than `request_timeout_s`, the wait for its turn included, is given up. `identity`: of
    `model`.
    """
    completions = Completions(model, identity, config, request_timeout_s)
    router = APIRouter(route_class=OpenAiRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_AS_EVENTS | RESPONSES)
    async def chat(request: ChatRequest, http: Request) -> ChatCompletion | Completion | Response:
        """The next turn of a conversation, as OpenAI's clients ask for it."""
        return await completions.answer(Asked.chat(request), http)

    @router.post("/v1/completions", response_model=Completion, responses=_AS_EVENTS | RESPONSES)
    async def complete(request: CompletionRequest, http: Request) -> ChatCompletion | Completion | Response:
        """What follows a text, as OpenAI's clients ask for it."""
        return await completions.answer(Asked.text(request), http)

    app.include_router(router)
