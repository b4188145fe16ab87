"""Wrong questions over HTTP, without Ray: problem JSON that names the field, the value and what is wrong."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request

from data.online.store import OnlineStore
from serve.http import MAX_BODY
from serve.problems import Problem, install
from serve.variant import Variant
from tests.serve.conftest import listening


def problem_of(response: Any, status: int) -> Problem:
    """The response's problem, which must be well-formed and match its status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.status == status
    assert problem.type.startswith("urn:towerline:problem:")
    assert problem.title
    assert "Traceback" not in response.text
    return problem


def test_an_unknown_item_is_not_found(client: httpx.Client) -> None:
    problem = problem_of(client.get("/v1/items/no%2Fsuch%20item/similar"), 404)
    assert problem.type == "urn:towerline:problem:unknown-item"
    assert problem.errors[0].field == "item_id"
    assert problem.errors[0].value == "no/such item"
    assert "no/such item" in problem.detail
    assert problem.instance == "/v1/items/no/such%20item/similar"


BAD_RECOMMEND = {
    "missing field": ({}, "user_id", None),
    "wrong type": ({"user_id": 5}, "user_id", 5),
    "a number as text": ({"user_id": "u", "count": "5"}, "count", "5"),
    "a truth as number": ({"user_id": "u", "count": True}, "count", True),
    "not whole": ({"user_id": "u", "count": 1.5}, "count", 1.5),
    "under range": ({"user_id": "u", "count": 0}, "count", 0),
    "over range": ({"user_id": "u", "count": 101}, "count", 101),
    "far over range": ({"user_id": "u", "count": 10**30}, "count", str(10**30)),
    "null": ({"user_id": None}, "user_id", None),
    "empty id": ({"user_id": ""}, "user_id", ""),
    "over-long id": ({"user_id": "x" * 513}, "user_id", "x" * 200 + "…"),
    "half a letter": ({"user_id": "\ud800"}, "user_id", "?"),
    "unknown field": ({"user_id": "u", "cuont": 3}, "cuont", 3),
    "wrong recent items": ({"user_id": "u", "recent_items": "a"}, "recent_items", "a"),
    "wrong recent item": ({"user_id": "u", "recent_items": ["a", 3]}, "recent_items[1]", 3),
    "too many recent items": ({"user_id": "u", "recent_items": ["a"] * 201}, "recent_items", ...),
    "explain as text": ({"user_id": "u", "explain": "yes"}, "explain", "yes"),
    "a list": ([], "body", "[]"),
    "nothing": (None, "body", None),
}


@pytest.mark.parametrize("case", BAD_RECOMMEND)
def test_a_bad_field_is_named_with_its_value(client: httpx.Client, case: str) -> None:
    body, field, value = BAD_RECOMMEND[case]
    response = client.post("/v1/recommend", content=json.dumps(body), headers={"content-type": "application/json"})
    problem = problem_of(response, 422)
    assert problem.type == "urn:towerline:problem:invalid-field"
    assert [each.field for each in problem.errors] == [field]
    assert field in problem.detail
    assert value is ... or problem.errors[0].value == value


def test_every_bad_field_is_named(client: httpx.Client) -> None:
    problem = problem_of(client.post("/v1/recommend", json={"count": 0, "explain": 1}), 422)
    assert [each.field for each in problem.errors] == ["user_id", "count", "explain"]


@pytest.mark.parametrize("query", ["count=0", "count=101", "count=ten", "cuont=3", "count=", "count=1e3"])
def test_a_bad_query_is_named(client: httpx.Client, query: str) -> None:
    problem = problem_of(client.get(f"/v1/items/item-1/similar?{query}"), 422)
    assert problem.errors[0].field == query.partition("=")[0]


def test_an_item_id_has_a_length(client: httpx.Client) -> None:
    assert problem_of(client.get("/v1/items//similar"), 422).errors[0].field == "item_id"
    assert problem_of(client.get(f"/v1/items/{'x' * 513}/similar"), 422).errors[0].field == "item_id"


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"user_id": "u",}', b"", b'{"user_id": "\xff"}', b"[" * 100_000, b'{"count": ' + b"9" * 5000 + b"}"],
)
def test_broken_json_is_a_bad_request(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    if body == b"":
        assert problem_of(response, 422).errors[0].field == "body"
    else:
        problem_of(response, 400)


def test_a_body_that_is_not_declared_as_json_is_refused(client: httpx.Client) -> None:
    problem = problem_of(client.post("/v1/recommend", data={"user_id": "u"}), 415)
    assert problem.errors[0].field == "Content-Type"


def test_a_body_that_is_too_large_is_refused_unread(client: httpx.Client) -> None:
    problem = problem_of(client.post("/v1/feedback", content=b" " * (MAX_BODY + 1)), 413)
    assert problem.errors[0].field == "body"

    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    problem_of(client.post("/v1/feedback", content=chunks()), 413)


def test_a_body_that_does_not_come_is_given_up_and_one_cut_off_is_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    install(app, max_body=100, body_timeout_s=0.2)
    asked = []

    @app.post("/")
    async def note(request: Request) -> None:
        asked.append(await request.body())

    begun = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345"
    with listening(app) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port)) as slow:
            slow.sendall(begun)
            answered = slow.makefile("rb").read()
        with socket.create_connection((where.hostname, where.port)) as cut_off:
            cut_off.sendall(begun)
        assert httpx.post(url, content=b"whole").status_code == 200
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert b"urn:towerline:problem:body-too-slow" in answered
    assert asked == [b"whole"]
    assert caplog.records == []


@pytest.mark.parametrize("path", ["/", "/v1/recommend/", "/v2/recommend", "/v1/items/similar", "/v1/items/a", "/千"])
def test_an_unknown_address_is_not_found(client: httpx.Client, path: str) -> None:
    assert problem_of(client.get(path), 404).type == "urn:towerline:problem:unknown-route"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/recommend", "POST"), ("POST", "/v1/items/a/similar", "GET"), ("DELETE", "/v1/feedback", "POST")],
)
def test_a_wrong_method_is_refused(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert problem_of(response, 405).type == "urn:towerline:problem:wrong-method"
    assert response.headers["allow"] == allowed


FUTURE = (datetime.now(UTC) + timedelta(days=1)).isoformat()
GOOD = {"user_id": "u", "item_id": "i"}
BAD_FEEDBACK = {
    "no events": ({"events": []}, "events"),
    "too many events": ({"events": [GOOD] * 1001}, "events"),
    "no list": ({"events": GOOD}, "events"),
    "missing item": ({"events": [GOOD, {"user_id": "u"}]}, "events[1].item_id"),
    "future": ({"events": [GOOD, GOOD | {"event_time": FUTURE}]}, "events[1].event_time"),
    "no time zone": ({"events": [GOOD | {"event_time": "2024-05-01T00:00:00"}]}, "events[0].event_time"),
    "before time": ({"events": [GOOD | {"event_time": "0001-01-01T00:00:00+14:00"}]}, "events[0].event_time"),
    "no time": ({"events": [GOOD | {"event_time": "yesterday"}]}, "events[0].event_time"),
    "not a number": ({"events": [GOOD | {"value": float("nan")}]}, "events[0].value"),
    "infinite": ({"events": [GOOD | {"value": float("inf")}]}, "events[0].value"),
    "text": ({"events": [GOOD | {"value": "5"}]}, "events[0].value"),
    "too large": ({"events": [GOOD | {"value": 1e300}]}, "events[0].value"),
    "over-long id": ({"events": [GOOD | {"event_id": "x" * 513}]}, "events[0].event_id"),
    "over-long decision": ({"events": [GOOD | {"decision_id": "x" * 65}]}, "events[0].decision_id"),
    "unknown field": ({"events": [GOOD | {"stars": 5}]}, "events[0].stars"),
}


@pytest.mark.parametrize("case", BAD_FEEDBACK)
def test_bad_feedback_is_named_and_none_of_it_is_stored(client: httpx.Client, store: OnlineStore, case: str) -> None:
    body, field = BAD_FEEDBACK[case]
    response = client.post("/v1/feedback", content=json.dumps(body), headers={"content-type": "application/json"})
    problem = problem_of(response, 422)
    assert problem.errors[0].field == field
    assert field in problem.detail
    assert "u" not in store.appended_events()["user_id"]


def test_what_nobody_foresaw_is_a_500_without_a_traceback(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Variant, "similar", broken)
    response = client.get("/v1/items/item-1/similar")
    problem = problem_of(response, 500)
    assert "secret" not in response.text
    assert problem.type == "urn:towerline:problem:defect"
    assert "secret detail" in caplog.text


def test_a_broken_model_is_not_healthy(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any, **_: Any) -> Any:
        return arguments[2] * float("nan")

    monkeypatch.setattr(Variant, "rank", nothing)
    assert "nan" in problem_of(client.get("/healthz"), 503).detail
