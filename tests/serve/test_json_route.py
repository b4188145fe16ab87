"""A `JsonRoute` answers every body as FastAPI does."""

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.json_route import JsonRoute
from serve.openapi import JSON
from serve.problems import install
from serve.schemas import RecommendRequest

pytestmark = pytest.mark.anyio


async def echo(asked: RecommendRequest, http: Request) -> RecommendRequest:  # noqa: ARG001
    return asked


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The same endpoint by both kinds of route."""
    app = FastAPI()
    app.router.add_api_route("/json_route", echo, methods=["POST"], route_class_override=JsonRoute)
    app.post("/fastapi")(echo)
    install(app, 10_000)
    return app


async def both(app: FastAPI, body: bytes, content_type: str | None = JSON) -> list[tuple[int, str | None, Any]]:
    """Status, content type and document of either route's answer."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://towerline") as client:
        answers = [await client.post(path, content=body, headers=headers) for path in ("/json_route", "/fastapi")]
    documents = [answer.json() for answer in answers]
    for document in documents:
        document.pop("instance", None)
    return [
        (answer.status_code, answer.headers["content-type"], document)
        for answer, document in zip(answers, documents, strict=True)
    ]


BODIES = {
    "whole": (b'{"user_id": "u", "count": 3, "recent_items": ["a"], "budget_ms": 5}', 200),
    "defaults": (b'{"user_id": "u"}', 200),
    "a field twice": (b'{"user_id": "u", "user_id": "v"}', 200),
    "escapes": (rb'{"user_id": "\u00e9\n\ud83e\udd84"}', 200),
    "null": (b'{"user_id": "u", "allow_items": null}', 200),
    "null where none may be": (b'{"user_id": "u", "deny_items": null}', 422),
    "half a letter": (rb'{"user_id": "\ud800"}', 422),
    "a whole number as float": (b'{"user_id": "u", "count": 3.0}', 422),
    "a large number": (b'{"user_id": "u", "count": 1e400}', 422),
    "no number": (b'{"user_id": "u", "count": NaN}', 422),
    "an unknown field": (b'{"user_id": "u", "cuont": 3}', 422),
    "a list": (b"[]", 422),
    "nothing": (b"", 422),
    "broken": (b'{"user_id": "u"', 400),
    "more behind it": (b'{"user_id": "u"} {}', 400),
    "a byte order mark": (b'\xef\xbb\xbf{"user_id": "u"}', 200),
    "UTF-16": ('{"user_id": "u"}'.encode("utf-16"), 200),
    "no Unicode": (b'{"user_id": "\xff"}', 400),
    "too large": (b'{"user_id": "' + b"u" * 10_000 + b'"}', 413),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_is_answered_alike(app: FastAPI, name: str) -> None:
    body, status = BODIES[name]
    by_json_route, by_fastapi = await both(app, body)
    assert by_json_route == by_fastapi
    assert by_json_route[0] == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [(f"{JSON}; charset=utf-8", 200), ("Application/JSON", 200), ("text/plain", 415), ("", 415), (None, 415)],
)
async def test_a_content_type_is_answered_alike(app: FastAPI, content_type: str | None, status: int) -> None:
    by_json_route, by_fastapi = await both(app, b'{"user_id": "u"}', content_type)
    assert by_json_route == by_fastapi
    assert by_json_route[0] == status


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3),
    max_leaves=4,
)
QUESTIONS = st.fixed_dictionaries(
    {"user_id": st.text() | VALUES},
    optional=dict.fromkeys([*RecommendRequest.model_fields, "other"][1:], st.integers(-1, 101) | VALUES),
)


@settings(max_examples=300, deadline=None)
@given(question=QUESTIONS)
async def test_any_question_is_answered_alike(app: FastAPI, question: dict[str, Any]) -> None:
    by_json_route, by_fastapi = await both(app, json.dumps(question).encode())
    assert by_json_route == by_fastapi
