"""A completion as server-sent events, and what is done when the client hangs up: it is given up."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from serve.completion_schemas import OpenAiError, Usage
from serve.disconnects import ClientGoneError, unless_gone
from serve.generation import End, FinishReason, Identity, Piece, Refused, Text

Choice = Mapping[str, Any]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class ChunkFormat:
    """How one kind of completion looks while it is written."""

    object: str
    opening: Choice | None
    """What comes before all text."""
    piece: Callable[[str], Choice]
    """What holds a piece of text."""
    closing: Choice
    """What says why the text ends."""


CHAT_CHUNKS = ChunkFormat(
    "chat.completion.chunk",
    {"delta": {"role": "assistant", "content": ""}},
    lambda text: {"delta": {"content": text}},
    {"delta": {}},
)
TEXT_CHUNKS = ChunkFormat("text_completion", None, lambda text: {"text": text}, {"text": ""})


@dataclass(frozen=True)
class Events:
    """One completion's pieces as server-sent events."""

    format: ChunkFormat
    model: Identity
    id: str
    created: int
    """Seconds since the epoch."""
    includes_usage: bool
    error: Callable[[Refused], OpenAiError]
    """How it is said that the completion breaks off."""

    async def of(self, first: Piece, others: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
        """The events, the last one included."""
        if self.format.opening is not None:
            yield self._chunk([self._choice(self.format.opening)])
        yield self._event(first)
        if isinstance(first, Text):
            async for piece in others:
                yield self._event(piece)

    def broken_off(self, refused: Refused) -> bytes:
        """The event of a completion that has no end."""
        return _event({"error": self.error(refused).model_dump()})

    def _event(self, piece: Piece) -> bytes:
        match piece:
            case Text(text):
                return self._chunk([self._choice(self.format.piece(text))])
            case End(reason):
                closing = self._chunk([self._choice(self.format.closing, reason)])
                usage = self._chunk([], usage_of(piece)) if self.includes_usage else b""
                return closing + usage + DONE
            case Refused():
                return self.broken_off(piece)

    def _choice(self, choice: Choice, reason: FinishReason | None = None) -> dict[str, Any]:
        return {"index": 0, **choice, "finish_reason": reason, "logprobs": None}

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        chunk = {
            "id": self.id,
            "object": self.format.object,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
            "choices": choices,
        }
        if self.includes_usage:
            chunk["usage"] = None if usage is None else usage.model_dump()
        return _event(chunk)


def usage_of(end: End) -> Usage:
    """The numbers of tokens of a completion."""
    return Usage(
        prompt_tokens=end.prompt_tokens,
        completion_tokens=end.completion_tokens,
        total_tokens=end.prompt_tokens + end.completion_tokens,
    )


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


class EventStream(Response):
    """The response that streams a completion; it gives the completion up when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(
        self, events: Events, first: Piece, others: AsyncGenerator[Piece, None], deadline: float, too_late: Refused
    ) -> None:
        """`first` was taken from `others`. What is not written at `deadline` (the event loop's time) never is, and
        `too_late` is said instead."""
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._first = first
        self._others = others
        self._deadline = deadline
        self._too_late = too_late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._send(send))
        except ClientGoneError:
            return
        finally:
            await self._others.aclose()

    async def _send(self, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                async for event in self._events.of(self._first, self._others):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            broken_off = self._events.broken_off(self._too_late)
            await send({"type": "http.response.body", "body": broken_off, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
