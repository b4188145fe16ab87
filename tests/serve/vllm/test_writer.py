"""Completions and sentences from what vLLM sends, without vLLM: its chunks are recorded."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from serve.batch import Batch, Call, Facts
from serve.completions import add_completions
from serve.generation import CompletionsConfig, End, Identity, Message, Piece, Question, Refused, Text
from serve.problems import install
from serve.stages.explain import ExplainConfig, grammar, messages
from serve.vllm.server import chunk_of
from serve.vllm.writer import VllmExplain, VllmWriter
from tests.serve.conftest import listening
from tests.serve.vllm.recorded import BROKEN, CHAT, INVALID, TEXT, TOO_LONG

CONFIG = CompletionsConfig(parallel=1, waiting=1)
HELLO = Question((Message("user", "Say hello."),), max_tokens=5, piecewise=True)
ONCE = Question("Once", max_tokens=2, seed=3, stop=("!",))
FACTS = Facts(7, "Aliens", ("Alien",), ("Horror",), 284)


class Recording:
    """Answers every request with the same chunks, and keeps what was asked."""

    def __init__(self, events: Sequence[str | dict[str, Any]]) -> None:
        self._events = events
        self.asked: list[dict[str, Any]] = []
        self.closed = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(request)
        try:
            await self.go_on.wait()
            for event in self._events:
                chunk = chunk_of(event) if isinstance(event, str) else event
                if chunk is not None:
                    yield chunk
        finally:
            self.closed += 1


async def written(recording: Recording, question: Question) -> list[Piece]:
    return [piece async for piece in VllmWriter(recording, "qwen", CONFIG).write(question)]


@pytest.mark.parametrize(
    ("events", "question", "pieces"),
    [
        (CHAT, HELLO, [Text("Hel"), Text("lo"), End("stop", 3, 2)]),
        (TEXT, ONCE, [Text(" upon a"), End("length", 3, 2)]),
        (
            BROKEN,
            HELLO,
            [Text("Hel"), Refused("failed", "the language model does not answer: boom")],
        ),
        (CHAT[:2], HELLO, [Text("Hel"), Refused("failed", "the language model broke off")]),
        ([TOO_LONG], HELLO, [Refused("too_long", TOO_LONG["error"]["message"])]),
        ([INVALID], HELLO, [Refused("invalid", "roles must alternate")]),
    ],
)
def test_chunks_become_pieces(events: Sequence[str], question: Question, pieces: list[Piece]) -> None:
    async def run() -> list[Piece]:
        return await written(Recording(events), question)

    assert asyncio.run(run()) == pieces


def test_a_question_becomes_a_request() -> None:
    async def run() -> list[dict[str, Any]]:
        recording = Recording(CHAT)
        await written(recording, HELLO)
        await written(recording, ONCE)
        return recording.asked

    chat, text = asyncio.run(run())
    assert (chat["model"], chat["messages"]) == ("qwen", [{"role": "user", "content": "Say hello."}])
    assert "seed" not in chat
    assert text == {
        "model": "qwen",
        "prompt": "Once",
        "max_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": ["!"],
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_one_is_written_one_waits_and_a_third_is_refused() -> None:
    async def run() -> None:
        recording = Recording(CHAT)
        recording.go_on.clear()
        writer = VllmWriter(recording, "qwen", CONFIG)
        first, second = (asyncio.ensure_future(anext(writer.write(HELLO))) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [piece async for piece in writer.write(HELLO)] == [
            Refused("busy", "2 completions are being written or wait for it already")
        ]
        assert len(recording.asked) == 1
        for waiting in (first, second):
            waiting.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        recording.go_on.set()
        assert len([piece async for piece in writer.write(HELLO)]) == 3

    asyncio.run(run())


def test_giving_a_completion_up_closes_what_vllm_is_asked_by() -> None:
    async def run() -> None:
        recording = Recording(CHAT)
        pieces = VllmWriter(recording, "qwen", CONFIG).write(HELLO)
        assert await anext(pieces) == Text("Hel")
        assert recording.closed == 0
        await pieces.aclose()
        assert recording.closed == 1

    asyncio.run(run())


def explaining(recording: Recording) -> VllmExplain:
    return VllmExplain(recording, "qwen", ExplainConfig(parallel=2, max_tokens=64))


def test_a_sentence_is_asked_for_by_the_prompt_and_the_grammar_of_llama_cpp() -> None:
    async def run() -> None:
        recording = Recording(CHAT)
        assert await explaining(recording).explain(FACTS) == "Hello"
        (asked,) = recording.asked
        assert asked["messages"] == messages(FACTS)
        assert asked["structured_outputs"] == {"grammar": grammar(FACTS)}
        assert (asked["temperature"], asked["max_tokens"]) == (0, 64)

    asyncio.run(run())


def test_a_sentence_without_an_end_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def run(events: Sequence[Any]) -> str | None:
        return await explaining(Recording(events)).explain(FACTS)

    cut_off = [event.replace('"stop",', '"length",') for event in CHAT]
    assert asyncio.run(run(cut_off)) is None
    with caplog.at_level(logging.ERROR):
        assert asyncio.run(run([INVALID])) is None
    assert "no explanation: roles must alternate" in caplog.text


def test_a_batch_gets_its_sentences_in_its_own_order_and_none_too_late() -> None:
    calls = tuple(Call(str(number), "u", 3, explain=True) for number in range(3))
    facts = ((FACTS, Facts(8, "Fargo", (), (), 1)), (), (Facts(9, "Contact", (), (), 2),))

    async def run(budget_s: float) -> tuple[Any, int]:
        recording = Recording(CHAT)
        batch = Batch(calls, datetime(2024, 5, 1, tzinfo=UTC), facts=facts, budget_s=budget_s)
        answered = await explaining(recording).run(batch)
        return answered.explanations, len(recording.asked)

    assert asyncio.run(run(10)) == (({7: "Hello", 8: "Hello"}, {}, {9: "Hello"}), 3)
    assert asyncio.run(run(0)) == (({}, {}, {}), 0)


def test_openais_client_is_answered_in_the_name_of_the_model() -> None:
    identity = Identity("qwen", "fp_1")
    app = FastAPI()
    install(app, max_body=2**20)
    add_completions(app, VllmWriter(Recording(CHAT), "qwen", CONFIG), CONFIG, 60, identity)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}]}
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model="qwen", **asked)
        assert (whole.model, whole.system_fingerprint) == ("qwen", "fp_1")
        assert whole.choices[0].message.content == "Hello"
        chunks = list(client.chat.completions.create(model="qwen", **asked, stream=True))
        assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {("qwen", "fp_1")}
        with pytest.raises(openai.NotFoundError, match="no language model 'smollm2-135m-instruct' here; ask 'qwen'"):
            client.chat.completions.create(model="smollm2-135m-instruct", **asked)
