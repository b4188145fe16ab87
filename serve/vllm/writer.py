"""What vLLM writes: completions and sentences, from the chunks of OpenAI's protocol. Nothing here needs vLLM."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from serve.batch import Batch, Facts
from serve.generation import CompletionsConfig, End, Message, Piece, Question, Refused, Text, Transcript, openai_request
from serve.stages.explain import ExplainConfig, grammar, messages, with_sentences

logger = logging.getLogger(__name__)

Chunks = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any], None]]
"""Sends a request and gives the chunks of the answer."""

TOO_LONG = ("input_tokens", "input_text")
"""What vLLM says is wrong where prompt and `max_tokens` do not fit into the context together."""


class VllmWriter:
    """Writes completions: a `serve.generation.LanguageModel`. Belongs to one event loop.

    A prompt that leaves less room than `max_tokens` is refused, where llama.cpp writes what there is room for.
    """

    def __init__(self, chunks: Chunks, name: str, config: CompletionsConfig) -> None:
        """`name`: of the model."""
        self._chunks = chunks
        self._name = name
        self._most = config.most
        self._places = asyncio.Semaphore(config.parallel)
        self._under_way = 0

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion."""
        if self._under_way == self._most:
            yield Refused("busy", f"{self._under_way} completions are being written or wait for it already")
            return
        self._under_way += 1
        try:
            async with self._places, aclosing(_pieces(self._chunks, self._request(question), question)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._under_way -= 1

    def _request(self, question: Question) -> dict[str, Any]:
        return openai_request(question) | {"model": self._name}


class VllmExplain:
    """Writes the sentences for the facts of a batch, as `serve.stages.explain.Explain` does, by its prompt and grammar.

    Belongs to one event loop.
    """

    def __init__(self, chunks: Chunks, name: str, config: ExplainConfig) -> None:
        """`name`: of the model."""
        self._chunks = chunks
        self._name = name
        self._max_tokens = config.max_tokens
        self._places = asyncio.Semaphore(config.parallel)

    async def run(self, batch: Batch) -> Batch:
        """Fill in `explanations`, as `Explain.run`."""
        deadline = time.monotonic() + batch.budget_s
        asked = (facts for row in batch.facts for facts in row)
        return with_sentences(batch, await asyncio.gather(*(self._explain(facts, deadline) for facts in asked)))

    async def explain(self, facts: Facts) -> str | None:
        """One sentence, or None if the model found no end."""
        question = sentence(facts, self._max_tokens)
        request = openai_request(question) | {"model": self._name, "structured_outputs": {"grammar": grammar(facts)}}
        async with aclosing(_pieces(self._chunks, request, question)) as pieces:
            *texts, last = [piece async for piece in pieces]
        if isinstance(last, Refused):
            logger.error("no explanation: %s", last.detail)
            return None
        found = isinstance(last, End) and last.reason == "stop"
        return "".join(piece.text for piece in texts if isinstance(piece, Text)) if found else None

    async def _explain(self, facts: Facts, deadline: float) -> str | None:
        async with self._places:
            return await self.explain(facts) if time.monotonic() < deadline else None


def sentence(facts: Facts, max_tokens: int) -> Question:
    """The question that a sentence answers; the grammar (GBNF, which vLLM's xgrammar reads) goes beside it."""
    prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in messages(facts))
    return Question(prompt=prompt, max_tokens=max_tokens, temperature=0)


async def _pieces(chunks: Chunks, request: dict[str, Any], question: Question) -> AsyncGenerator[Piece, None]:
    """The pieces that the chunks of an answer hold, up to the last."""
    found: list[Piece] = []
    transcript = Transcript(question, found.append, refusal)
    async with aclosing(chunks(request)) as answer:
        async for chunk in answer:
            transcript.take(chunk)
            for piece in found:
                yield piece
                if not isinstance(piece, Text):
                    return
            found.clear()
    transcript.close()
    for piece in found:
        yield piece


def refusal(error: dict[str, Any]) -> Refused:
    """vLLM's error."""
    if error.get("param") in TOO_LONG:
        return Refused("too_long", str(error["message"]))
    if 400 <= int(error["code"]) < 500:
        return Refused("invalid", str(error["message"]))
    logger.error("no completion: %s", error)
    return Refused("failed", f"the language model does not answer: {error['message']}")
