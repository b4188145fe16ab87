"""What the language model writes for others: prompts of their own, several at once, piece by piece.

llama.cpp decodes all sequences that are under way together, one token of each per step, and lets new ones join between
two steps (continuous batching; Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models",
OSDI 2022). Completions have sequences of their own beside those of the explanations, so that neither waits for a place
of the other; they share the processor.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cluster.assets import SMOLLM2

logger = logging.getLogger(__name__)

MODEL = SMOLLM2.name
"""What the language model that llama.cpp runs is called in requests."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Identity:
    """Which language model answers."""

    name: str
    """What it is called in requests."""
    fingerprint: str
    """Of its weights, or of where they come from."""


SMOLLM2_BY_LLAMA = Identity(MODEL, f"fp_{SMOLLM2.files[0].sha256[:12]}")


class CompletionsConfig(BaseModel):
    """Completions for others, and their limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parallel: int = Field(default=4, ge=1, le=64)
    """Completions that a replica writes at once, beside its explanations. Each costs memory for `explain.context`
    tokens (24 MB for 1,024)."""

    waiting: int = Field(default=16, ge=0)
    """Most completions that wait in a replica until one of those is finished. A further one is refused with 429."""

    max_tokens: int = Field(default=512, ge=1)
    """Most tokens that one may ask for. Prompt and completion together never exceed `explain.context`."""

    @property
    def most(self) -> int:
        """Completions that a replica has at once: those that it writes and those that wait."""
        return self.parallel + self.waiting


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Question:
    """What is to be written, and how the next token is drawn."""

    prompt: str | tuple[Message, ...]
    """A text to go on with, or a conversation to answer."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts before any of which the completion ends."""

    piecewise: bool = False
    """Whether the text is wanted as it is written."""


@dataclass(frozen=True)
class Text:
    """A further piece of the completion."""

    text: str


@dataclass(frozen=True)
class End:
    """Nothing follows."""

    reason: FinishReason
    """`length`: the tokens that were asked for, or the context, are used up."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Refused:
    """There is no completion, or no more of it."""

    reason: Literal["busy", "cold", "invalid", "too_long", "too_late", "failed"]
    detail: str


Piece = Text | End | Refused
"""Pieces of text come first; the last piece is an `End` or a `Refused`."""


class LanguageModel(Protocol):
    """Whoever writes completions, here or in another process."""

    def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion. Closing the generator before its end gives the completion up."""
        ...


class Writer:
    """Writes completions with llama.cpp in this process: a `LanguageModel`. Belongs to one event loop."""

    def __init__(self, llama: Any, config: CompletionsConfig) -> None:
        """`llama`: a server from `serve.language_model.load_llama` with `config.parallel` sequences to spare."""
        self._llama = llama
        self._config = config
        self._threads = ThreadPoolExecutor(config.parallel, thread_name_prefix="completion")
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """Completions that are being written or wait for it."""
        return self._under_way

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion; what was written since the last one was taken comes as one."""
        if self._under_way == self._config.most:
            yield Refused("busy", f"{self._under_way} completions are being written or wait for it already")
            return
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        given_up = threading.Event()
        loop = asyncio.get_running_loop()

        def finished(writing: "Future[None]") -> None:
            if not writing.cancelled() and (error := writing.exception()) is not None:
                logger.error("a completion failed", exc_info=error)
            loop.call_soon_threadsafe(self._finished)

        self._under_way += 1
        transcript = Transcript(
            question, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece), _refusal, given_up.is_set
        )
        writing = self._threads.submit(self._write, question, transcript)
        writing.add_done_callback(finished)
        try:
            while True:
                for piece in await _waiting(pieces):
                    yield piece
                    if not isinstance(piece, Text):
                        return
        finally:
            given_up.set()
            writing.cancel()

    def _finished(self) -> None:
        self._under_way -= 1

    def _write(self, question: Question, transcript: "Transcript") -> None:
        """In a thread: llama.cpp calls back with each token, and stops when it is told so."""
        parameters = openai_request(question) | {"cache_prompt": True}
        try:
            if isinstance(question.prompt, str):
                self._llama.handle_completions(parameters, transcript.take)
            else:
                self._llama.handle_chat_completions(parameters, transcript.take)
        except ValueError as error:
            # What llama.cpp calls an invalid argument.
            transcript.end(Refused("invalid", str(error)))
        finally:
            transcript.close()


async def _waiting(pieces: "asyncio.Queue[Piece]") -> list[Piece]:
    """What is there, at least one piece; neighbouring texts become one."""
    found = [await pieces.get()]
    while not pieces.empty():
        piece, last = pieces.get_nowait(), found[-1]
        if isinstance(piece, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + piece.text)
        else:
            found.append(piece)
    return found


def openai_request(question: Question) -> dict[str, Any]:
    """The question as OpenAI's servers read it, to be streamed. What it does not say is left to the server: llama.cpp's
    `top_k` (40) and `min_p` (0.05) cut the tail of what is drawn from, without which so small a model rambles."""
    prompt: dict[str, Any] = (
        {"prompt": question.prompt}
        if isinstance(question.prompt, str)
        else {"messages": [{"role": message.role, "content": message.content} for message in question.prompt]}
    )
    return {
        **prompt,
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "presence_penalty": question.presence_penalty,
        "frequency_penalty": question.frequency_penalty,
        "stop": list(question.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
        **({} if question.seed is None else {"seed": question.seed}),
    }


class Transcript:
    """Turns the chunks of OpenAI's protocol into pieces, in the thread where `take` is called."""

    def __init__(
        self,
        question: Question,
        emit: Callable[[Piece], object],
        refusal: Callable[[dict[str, Any]], Refused],
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """`emit` takes each piece, `refusal` reads the `error` object of a chunk that has one."""
        self._piecewise = question.piecewise
        self._emit = emit
        self._refusal = refusal
        self._given_up = given_up
        self._texts: list[str] = []
        self._reason: FinishReason | None = None
        self._ended = False

    def take(self, chunk: dict[str, Any]) -> bool:
        """One chunk; true when no further one is wanted."""
        if "error" in chunk:
            self.end(self._refusal(chunk["error"]))
            return True
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text:
                self._add(text)
            self._reason = choice["finish_reason"] or self._reason
        if "usage" in chunk and self._reason is not None:
            usage = chunk["usage"]
            self.end(End(self._reason, usage["prompt_tokens"], usage["completion_tokens"]))
        return self._given_up()

    def end(self, last: End | Refused) -> None:
        """Nothing follows this."""
        if self._texts:
            self._emit(Text("".join(self._texts)))
        self._emit(last)
        self._ended = True

    def close(self) -> None:
        """No chunk follows. One that was broken off for reasons of the server is a failure."""
        if not self._ended and not self._given_up():
            self.end(Refused("failed", "the language model broke off"))

    def _add(self, text: str) -> None:
        if self._piecewise:
            self._emit(Text(text))
        else:
            self._texts.append(text)


def _refusal(error: dict[str, Any]) -> Refused:
    """llama.cpp's error."""
    if error.get("type") == "exceed_context_size_error":
        tokens, context = error["n_prompt_tokens"], error["n_ctx"]
        return Refused(
            "too_long", f"the prompt is {tokens} tokens long; at most {context - 1} leave room for an answer"
        )
    if error.get("type") == "invalid_request_error":
        return Refused("invalid", str(error["message"]))
    logger.error("no completion: %s", error)
    return Refused("failed", f"the language model does not answer: {error.get('message', error)}")
