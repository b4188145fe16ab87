"""Every endpoint over HTTP, without Ray: right answers, and problem JSON that names the field for wrong questions."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import polars as pl
import pytest
import uvicorn
from fastapi import FastAPI

from data.dataset import Dataset
from data.online_store import OnlineStore
from serve.batch import Batch, Stage
from serve.decisions import DecisionLog, read_decisions
from serve.graph import Graph, GraphConfig, StageName, StageUnavailableError
from serve.http import MAX_BODY, build_http
from serve.problems import Problem
from serve.service import Place, Service
from serve.variant import Variant

MakeStages = Callable[[OnlineStore], dict[StageName, Stage]]


async def no_language_model(_: Batch) -> Batch:
    """What a caller sees while the remote stage is being started."""
    raise StageUnavailableError("stage 'explain' does not answer")


@pytest.fixture(scope="module")
def decisions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decisions")


@pytest.fixture(scope="module")
def store(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OnlineStore:
    store = OnlineStore(tmp_path_factory.mktemp("store") / "shop.db")
    store.publish(shop)
    return store


@pytest.fixture(scope="module")
def client(
    shop_variant: Variant, store: OnlineStore, make_stages: MakeStages, decisions_folder: Path
) -> Iterator[httpx.Client]:
    service = Service(
        place=Place("shop", "replica-1"),
        variant=shop_variant,
        graph=Graph(GraphConfig(), make_stages(store), {"explain": no_language_model}),
        store=store,
        decisions=DecisionLog(decisions_folder, "replica-1"),
    )
    with _listening(build_http(service)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@contextmanager
def _listening(app: FastAPI) -> Iterator[str]:
    """`app` on a free port, in a thread of this process, until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def ask(client: httpx.Client, **body: object) -> dict[str, Any]:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


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


def test_a_known_user_gets_unseen_items_best_first(client: httpx.Client, shop_events: pl.DataFrame) -> None:
    answer = ask(client, user_id="user 3", count=7)
    ids = [item["item_id"] for item in answer["items"]]
    seen = set(shop_events.filter(pl.col("user_id") == "user 3")["item_id"])
    assert len(ids) == len(set(ids)) == 7
    assert not seen & set(ids)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["known_user"] is True
    assert answer["models"] == {"two-tower": "1", "ranker": "1"}
    assert answer["variant"] == "champion"
    assert {"queue", "features", "retrieval", "filter", "ranking", "total"} == set(answer["timings_ms"])
    assert answer["degraded"] == []


def test_ten_items_unless_told_otherwise(client: httpx.Client) -> None:
    assert len(ask(client, user_id="user 1")["items"]) == 10


@pytest.mark.parametrize("user", ["never seen", "千/と", "a\x00b", "x" * 512, "🦄", "'; DROP TABLE events;--"])
def test_an_unknown_user_gets_an_answer(client: httpx.Client, user: str) -> None:
    answer = ask(client, user_id=user, count=3)
    assert answer["user_id"] == user
    assert answer["known_user"] is False
    assert len(answer["items"]) == 3


def test_recent_items_change_the_answer_and_are_not_recommended(client: httpx.Client) -> None:
    without = ask(client, user_id="somebody new", count=50)
    recent = [item["item_id"] for item in without["items"][:3]]
    with_recent = ask(client, user_id="somebody new", count=50, recent_items=[*recent, "no such item"])
    ids = [item["item_id"] for item in with_recent["items"]]
    assert not set(recent) & set(ids)
    assert ids != [item["item_id"] for item in without["items"] if item["item_id"] not in recent]
    assert with_recent["known_user"] is False


def test_recent_items_that_nobody_knows_change_nothing(client: httpx.Client) -> None:
    plain = ask(client, user_id="user 4", count=5)
    odd = ask(client, user_id="user 4", count=5, recent_items=["no such item", "\x00"])
    assert [item["item_id"] for item in odd["items"]] == [item["item_id"] for item in plain["items"]]


def test_a_user_who_has_seen_nearly_everything_gets_the_rest(client: httpx.Client, shop_variant: Variant) -> None:
    everything = [shop_variant.catalogue.item_id(code) for code in range(1, len(shop_variant.catalogue) + 1)]
    answer = ask(client, user_id="new", count=10, recent_items=everything[:-2])
    assert {item["item_id"] for item in answer["items"]} == set(everything[-2:])
    assert ask(client, user_id="new", count=10, recent_items=everything)["items"] == []


def test_without_a_language_model_the_answer_says_so_and_is_otherwise_whole(client: httpx.Client) -> None:
    answer = ask(client, user_id="user 2", count=5, explain=True)
    assert answer["degraded"] == ["explain"]
    assert len(answer["items"]) == 5
    assert all(item["explanation"] is None for item in answer["items"])


def test_similar_items_for_ids_with_any_letters(
    client: httpx.Client, odd_item: str, get_as_it_is: Callable[[str, str], dict[str, Any]]
) -> None:
    answer = get_as_it_is(str(client.base_url), f"/v1/items/{quote(odd_item, safe='')}/similar?count=4")
    assert answer["item_id"] == odd_item
    ids = [item["item_id"] for item in answer["items"]]
    assert len(set(ids)) == 4
    assert odd_item not in ids
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.001 <= score <= 1.001 for score in scores)
    assert answer["models"] == {"two-tower": "1", "ranker": "1"}


def test_odd_ids_are_recommended_and_recognised(client: httpx.Client, odd_item: str) -> None:
    ids = [item["item_id"] for item in ask(client, user_id="new", count=100)["items"]]
    assert odd_item in ids
    ids = [item["item_id"] for item in ask(client, user_id="new", count=100, recent_items=[odd_item])["items"]]
    assert odd_item not in ids


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


def test_feedback_is_stored_and_counts_from_then_on(client: httpx.Client, store: OnlineStore) -> None:
    first = ask(client, user_id="newcomer", count=5)
    liked = first["items"][0]["item_id"]
    event = {
        "user_id": "newcomer",
        "item_id": liked,
        "event_type": "buy",
        "value": 5,
        "event_id": "feedback/1",
        "decision_id": first["decision_id"],
    }
    response = client.post("/v1/feedback", json={"events": [event]})
    assert response.json() == {"stored": 1, "duplicates": 0, "event_ids": ["feedback/1"]}
    stored = store.user_events(["newcomer"])
    assert stored.select("event_id", "item_id", "event_type", "value", "decision_id").rows() == [
        ("feedback/1", liked, "buy", 5.0, first["decision_id"])
    ]
    after = ask(client, user_id="newcomer", count=5)
    assert after["known_user"] is True
    assert liked not in [item["item_id"] for item in after["items"]]


def test_feedback_of_a_fast_clock_happened_now(client: httpx.Client, store: OnlineStore) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    event = {"user_id": "fast", "item_id": "item-1", "event_time": soon}
    assert client.post("/v1/feedback", json={"events": [event]}).json()["stored"] == 1
    assert store.user_events(["fast"])["event_time"][0] <= datetime.now(UTC)
    assert ask(client, user_id="fast")["known_user"] is True


def test_feedback_sent_twice_is_stored_once(client: httpx.Client, store: OnlineStore) -> None:
    event = {"user_id": "twice", "item_id": "item-1", "event_id": "once", "event_time": "2024-05-02T10:00:00+02:00"}
    assert client.post("/v1/feedback", json={"events": [event]}).json()["stored"] == 1
    again = client.post("/v1/feedback", json={"events": [event, event]})
    assert again.json() == {"stored": 0, "duplicates": 2, "event_ids": ["once", "once"]}
    assert store.user_events(["twice"])["event_time"].to_list() == [datetime(2024, 5, 2, 8, tzinfo=UTC)]


def test_many_events_of_any_ids_are_stored(client: httpx.Client, store: OnlineStore, odd_item: str) -> None:
    user = f"many {odd_item}"
    events = [{"user_id": user, "item_id": item} for item in (odd_item, "never in the catalogue", odd_item)]
    response = client.post("/v1/feedback", json={"events": events})
    assert response.json()["stored"] == 3
    assert len(set(response.json()["event_ids"])) == 3
    assert sorted(store.user_events([user])["item_id"]) == sorted([odd_item, "never in the catalogue", odd_item])
    assert odd_item not in [item["item_id"] for item in ask(client, user_id=user, count=100)["items"]]


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
    assert store.user_events(["u"]).is_empty()


def test_health_asks_the_model(client: httpx.Client) -> None:
    answer = client.get("/healthz").json()
    assert answer["status"] == "ok"
    assert answer["data_set"] == "shop"
    assert answer["replica"] == "replica-1"
    assert answer["models"] == {"two-tower": "1", "ranker": "1"}
    assert answer["probe_ms"] > 0
    assert answer["decision_log"]["dropped"] == 0


def test_the_decision_log_tells_how_the_answer_came_about(client: httpx.Client, decisions_folder: Path) -> None:
    answer = ask(client, user_id="user 5", count=4, recent_items=["item-3"])
    similar = client.get("/v1/items/item-5/similar?count=2").json()
    logged = {each.decision_id: each for each in _logged(client, decisions_folder)}
    decision = logged[answer["decision_id"]]
    assert decision.request == {"user_id": "user 5", "count": 4, "recent_items": ["item-3"], "explain": False}
    assert decision.models == answer["models"]
    assert [(item.item_id, item.score) for item in decision.answer] == [
        (item["item_id"], item["score"]) for item in answer["items"]
    ]
    assert list(decision.candidates["item_id"][:4]) == [item["item_id"] for item in answer["items"]]
    assert list(decision.candidates["ranking_score"][:4]) == [item["score"] for item in answer["items"]]
    assert {"item_event_count", "item_mean_value", "item_share", "item_seconds_since_last", "retrieval_score"} <= set(
        decision.candidates
    )
    assert len(set(map(len, decision.candidates.values()))) == 1
    assert decision.user_features["history_items"][-1] == "item-3"
    assert decision.user_features["user_attributes"] == ["age=5"]
    assert decision.timings_ms == answer["timings_ms"]
    assert decision.replica == "replica-1"
    other = logged[similar["decision_id"]]
    assert other.kind == "similar"
    assert [item.item_id for item in other.answer] == [item["item_id"] for item in similar["items"]]


def _logged(client: httpx.Client, folder: Path) -> list[Any]:
    for _ in range(200):
        if client.get("/healthz").json()["decision_log"]["queued"] == 0:
            break
    return list(read_decisions(folder))


def test_the_openapi_document_describes_what_comes(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {"/v1/recommend", "/v1/items/{item_id}/similar", "/v1/feedback", "/healthz"}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            errors = {status: each for status, each in operation["responses"].items() if status >= "400"}
            assert errors
            assert all(list(each["content"]) == ["application/problem+json"] for each in errors.values())
    schemas = document["components"]["schemas"]
    validate(client.post("/v1/recommend", json={"user_id": "user 1"}).json(), "RecommendResponse", schemas)
    validate(client.get("/v1/items/item-1/similar").json(), "SimilarResponse", schemas)
    validate(client.get("/healthz").json(), "Health", schemas)
    validate(client.post("/v1/recommend", json={}).json(), "Problem", schemas)
    for name in schemas:
        jsonschema.Draft202012Validator.check_schema(schemas[name])


def validate(instance: object, name: str, schemas: dict[str, Any]) -> None:
    jsonschema.validate(instance, {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


def test_the_documentation_page_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert client.get(f"/static-offline-docs/{asset}").status_code == 200


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
    def nothing(*arguments: Any) -> Any:
        return arguments[2] * float("nan")

    monkeypatch.setattr(Variant, "rank", nothing)
    assert "nan" in problem_of(client.get("/healthz"), 503).detail
