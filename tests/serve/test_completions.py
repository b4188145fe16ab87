"""OpenAI's own client, unmodified, asks the real language model over HTTP, without Ray."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from cluster.assets import SMOLLM2, fetch
from serve.completion_schemas import CompletionProblem
from serve.completions import add_completions
from serve.generation import MODEL, CompletionsConfig, Writer
from serve.language_model import load_llama
from serve.openapi import describe
from serve.problems import install
from tests.serve.conftest import listening
from tests.serve.openapi import require_answers, require_examples, require_problems

CONTEXT = 512
CONFIG = CompletionsConfig(parallel=2, waiting=1, max_tokens=400)
CAPITAL: list[Any] = [{"role": "user", "content": "Name the capital city of France."}]
LONG: dict[str, Any] = {"model": MODEL, "prompt": "One, two, three, four,", "max_tokens": 400, "temperature": 0}
"""Takes some seconds."""


@pytest.fixture(scope="module")
def writer() -> Writer:
    weights = fetch(SMOLLM2) / SMOLLM2.files[0].name
    llama, _ = load_llama(weights, threads=1, parallel=CONFIG.parallel, context=CONTEXT, max_tokens=CONFIG.max_tokens)
    return Writer(llama, CONFIG)


def completing(writer: Writer, request_timeout_s: float) -> FastAPI:
    app = FastAPI()
    install(app, max_body=2**20)
    add_completions(app, writer, CONFIG, request_timeout_s)
    return app


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def url(writer: Writer) -> Iterator[str]:
    with listening(completing(writer, 60)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai_client(url) as client:
        yield client


def are_left(writer: Writer, under_way: int) -> bool:
    """Whether so many completions are being written once the others have ended, which may take a moment."""
    deadline = time.monotonic() + 20
    while writer.under_way > under_way and time.monotonic() < deadline:
        time.sleep(0.01)
    return writer.under_way == under_way


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=30)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("stop", "assistant")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_conversation_has_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_completion_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[:-1] if chunk.choices[0].delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_text_is_continued_and_streamed_in_the_same_words(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 16)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_stream_is_server_sent_events_that_end_with_done(url: str) -> None:
    response = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 3, "stream": True}, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events)


def test_prompt_and_completion_fit_into_the_context_together(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="word " * 490, temperature=0, max_tokens=100)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 480
    assert CONTEXT - 2 <= answer.usage.total_tokens <= CONTEXT
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", [" four", [" nine", " four"]])
def test_it_ends_before_a_stop_text(client: openai.OpenAI, stop: str | list[str]) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "One, two, three, four, one, two,", "temperature": 0}
    answer = client.completions.create(**asked, max_tokens=60, stop=stop)
    assert answer.choices[0].text.startswith(" three")
    assert "four" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    pieces = client.completions.create(**asked, max_tokens=60, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == answer.choices[0].text


def test_a_seed_decides_what_is_drawn(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt="My favourite", max_tokens=12, seed=seed)
        return answer.choices[0].text

    drawn(1)
    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_message_may_come_in_parts(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": "Answer in one word."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}],
        },
    ]
    answer = client.chat.completions.create(model=MODEL, messages=parts, temperature=0, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_completion_joins_others_that_are_being_written(client: openai.OpenAI, writer: Writer) -> None:
    with client.completions.create(**LONG, stream=True) as long:
        next(long)
        short = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4)
        assert short.choices[0].text
        assert are_left(writer, 1)


def test_who_finds_all_places_taken_is_told_to_come_back(client: openai.OpenAI, writer: Writer) -> None:
    with ThreadPoolExecutor(1) as pool, ExitStack() as streams:
        for _ in range(CONFIG.parallel):
            next(streams.enter_context(client.completions.create(**LONG, stream=True)))
        waits = pool.submit(client.completions.create, model=MODEL, prompt="The", max_tokens=2)
        while writer.under_way < CONFIG.most:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="ask again in 1 s") as refused:
            client.completions.create(model=MODEL, prompt="The", max_tokens=2)
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "rate_limit_exceeded"
        assert not waits.done()
        streams.close()
        assert waits.result().choices[0].finish_reason == "length"
    assert are_left(writer, 0)


def test_a_client_that_hangs_up_frees_its_place(client: openai.OpenAI, url: str, writer: Writer) -> None:
    with client.completions.create(**LONG, stream=True) as stream:
        next(stream)
        assert writer.under_way == 1
    assert are_left(writer, 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=LONG, timeout=0.5)
    assert are_left(writer, 0)


Call = Callable[[openai.OpenAI], object]
REFUSED: dict[str, tuple[Call, type[openai.APIStatusError], str, str, str]] = {
    "an unknown model": (
        lambda client: client.completions.create(model="gpt-9", prompt="a"),
        openai.NotFoundError, "model", "model_not_found", f"'gpt-9' here; ask '{MODEL}'",
    ),
    "a field it cannot do": (
        lambda client: client.completions.create(model=MODEL, prompt="a", best_of=2),
        openai.UnprocessableEntityError, "best_of", "invalid_field", "best_of: Extra inputs are not permitted",
    ),
    "a field nobody knows": (
        lambda client: client.chat.completions.create(model=MODEL, messages=CAPITAL, extra_body={"tmperature": 1}),
        openai.UnprocessableEntityError, "tmperature", "invalid_field", "tmperature: Extra inputs are not permitted",
    ),
    "several choices": (
        lambda client: client.chat.completions.create(model=MODEL, messages=CAPITAL, n=2),
        openai.UnprocessableEntityError, "n", "invalid_field", "n: Input should be 1",
    ),
    "a picture": (
        lambda client: client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        ),
        openai.UnprocessableEntityError, "messages[0].content[0].type", "invalid_field", "should be 'text'",
    ),
    "no message": (
        lambda client: client.chat.completions.create(model=MODEL, messages=[]),
        openai.UnprocessableEntityError, "messages", "invalid_field", "at least 1 item",
    ),
    "a conversation the model cannot follow": (
        lambda client: client.chat.completions.create(
            model=MODEL, messages=[*CAPITAL, *[{"role": "assistant", "content": "Well"}] * 2]
        ),
        openai.UnprocessableEntityError, "messages", "invalid_field", "2 or more assistant messages at the end",
    ),
    "too many tokens": (
        lambda client: client.chat.completions.create(model=MODEL, messages=CAPITAL, max_completion_tokens=401),
        openai.UnprocessableEntityError, "max_completion_tokens", "invalid_field", "is 401; this endpoint writes 400",
    ),
    "a prompt too long": (
        lambda client: client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 600}], stream=True
        ),
        openai.UnprocessableEntityError, "messages", "context_length_exceeded", "at most 511 leave room",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_with_the_field(client: openai.OpenAI, writer: Writer, case: str) -> None:
    call, kind, field, code, text = REFUSED[case]
    with pytest.raises(kind, match=re.escape(text)) as refused:
        call(client)
    assert (refused.value.param, refused.value.code) == (field, code)
    assert are_left(writer, 0)


def test_an_error_is_a_problem_as_well(url: str) -> None:
    response = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": ""})
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["type"]) == (422, "urn:towerline:problem:invalid-field")
    assert problem["errors"][0]["field"] == problem["error"]["param"] == "prompt"
    broken = httpx.post(f"{url}/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "broken_json")


def test_what_takes_too_long_is_given_up(writer: Writer) -> None:
    with listening(completing(writer, 0.3)) as url, openai_client(url) as client:
        with pytest.raises(openai.InternalServerError, match=r"not finished within 0\.3 s") as late:
            client.completions.create(**LONG)
        assert late.value.status_code == 504
        assert are_left(writer, 0)
        with pytest.raises(openai.APIError, match=r"not finished within 0\.3 s"):
            list(client.completions.create(**LONG, stream=True))
        assert are_left(writer, 0)


def test_the_openapi_document_has_examples_that_work(writer: Writer) -> None:
    app = completing(writer, 60)
    describe(app)
    with listening(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        document = client.get("/openapi.json").json()
        require_answers(client, document, lambda _: 200)
    require_examples(document)
    require_problems(document, CompletionProblem)
