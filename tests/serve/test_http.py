"""Every endpoint over HTTP, without Ray: right answers, and what they leave behind."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import polars as pl
import pytest

from data.dataset import Dataset
from data.features import feature_fingerprints
from data.online.store import OnlineStore
from serve.decisions import read_decisions
from serve.generation import MODEL
from serve.graph import RANKED
from serve.variant import Variant
from tests.serve.conftest import HISTORY, Answering


def ask(client: httpx.Client, **body: object) -> dict[str, Any]:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def appended(store: OnlineStore, user: str) -> pl.DataFrame:
    return store.appended_events().filter(pl.col("user_id") == user)


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
    assert {"queue", *RANKED, "total"} == set(answer["timings_ms"])
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


def test_a_request_says_what_it_may_be_answered_with(client: httpx.Client) -> None:
    listed = ["item-30", "item-31", "no such item", "item-32"]
    answer = ask(client, user_id="new", count=10, allow_items=listed, deny_items=["item-31"])
    assert {item["item_id"] for item in answer["items"]} == {"item-30", "item-32"}
    assert ask(client, user_id="new", allow_items=[])["items"] == []


def test_a_budget_that_is_too_small_for_any_answer_is_a_problem(client: httpx.Client) -> None:
    response = client.post("/v1/recommend", json={"user_id": "user 2", "budget_ms": 1})
    assert response.status_code == 504
    assert response.json()["type"] == "urn:towerline:problem:too-late"
    assert "budget_ms" in response.json()["detail"]
    assert ask(client, user_id="user 2", budget_ms=30_000)["degraded"] == []


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
    stored = appended(store, "newcomer")
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
    assert appended(store, "fast")["event_time"][0] <= datetime.now(UTC)
    assert ask(client, user_id="fast")["known_user"] is True


def test_feedback_sent_twice_is_stored_once(client: httpx.Client, store: OnlineStore) -> None:
    event = {"user_id": "twice", "item_id": "item-1", "event_id": "once", "event_time": "2024-05-02T10:00:00+02:00"}
    assert client.post("/v1/feedback", json={"events": [event]}).json()["stored"] == 1
    again = client.post("/v1/feedback", json={"events": [event, event]})
    assert again.json() == {"stored": 0, "duplicates": 2, "event_ids": ["once", "once"]}
    assert appended(store, "twice")["event_time"].to_list() == [datetime(2024, 5, 2, 8, tzinfo=UTC)]


def test_many_events_of_any_ids_are_stored(client: httpx.Client, store: OnlineStore, odd_item: str) -> None:
    user = f"many {odd_item}"
    events = [{"user_id": user, "item_id": item} for item in (odd_item, "never in the catalogue", odd_item)]
    response = client.post("/v1/feedback", json={"events": events})
    assert response.json()["stored"] == 3
    assert len(set(response.json()["event_ids"])) == 3
    assert sorted(appended(store, user)["item_id"]) == sorted([odd_item, "never in the catalogue", odd_item])
    assert odd_item not in [item["item_id"] for item in ask(client, user_id=user, count=100)["items"]]


def test_a_batch_is_answered_as_its_requests_alone_would_be(
    answering: Answering, shop_store: OnlineStore, tmp_path: Path
) -> None:
    requests = [
        *({"user_id": f"user {number}", "count": 3 + number} for number in range(10)),
        {"user_id": "nobody", "recent_items": ["item-3", "a/b/similar"], "deny_items": ["item-9"]},
        {"user_id": "user 0", "explain": True},
    ]
    with answering(shop_store, tmp_path, datetime(2024, 6, 1, tzinfo=UTC)) as client:
        response = client.post("/v1/recommend:batch", json={"requests": requests})
        assert response.status_code == 200, response.text
        alone = [ask(client, **request) for request in requests]
    assert all(each["problem"] is None for each in response.json()["answers"])
    answers = [each["answer"] for each in response.json()["answers"]]
    for answer, other in zip(answers, alone, strict=True):
        assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in other["items"]]
        scores = [item["score"] for item in other["items"]]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-5)
        for name in ("user_id", "known_user", "variant", "models", "degraded"):
            assert answer[name] == other[name]
    logged = {each.decision_id: each for each in read_decisions(tmp_path)}
    assert [logged[answer["decision_id"]].request["user_id"] for answer in answers] == [
        request["user_id"] for request in requests
    ]


def test_a_request_of_a_batch_carries_its_own_problem(client: httpx.Client) -> None:
    requests = [{"user_id": "user 1"}, {"user_id": "user 2", "budget_ms": 1}, {"user_id": "user 3"}]
    response = client.post("/v1/recommend:batch", json={"requests": requests})
    first, late, last = response.json()["answers"]
    assert response.status_code == 200
    assert len(first["answer"]["items"]) == len(last["answer"]["items"]) == 10
    assert late["answer"] is None
    assert (late["problem"]["status"], late["problem"]["type"]) == (504, "urn:towerline:problem:too-late")
    assert late["problem"]["instance"] == "/v1/recommend:batch"


def test_a_batch_that_cannot_be_read_is_refused_as_a_whole(client: httpx.Client) -> None:
    for requests, field in (
        ([{"user_id": "user 1"}, {"user_id": "user 2", "count": 0}], "requests[1].count"),
        ([], "requests"),
        ([{"user_id": "user 1"}] * 101, "requests"),
    ):
        response = client.post("/v1/recommend:batch", json={"requests": requests})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == field


def test_the_features_of_a_user_are_those_that_the_models_see(
    client: httpx.Client, decisions_folder: Path, shop: Dataset
) -> None:
    found = client.get("/v1/users/user%205/features").json()
    assert (found["user_id"], found["known_user"], found["attributes"]) == ("user 5", True, ["age=5"])
    assert found["data_version"] == shop.manifest.data_version
    (view,) = found["views"]
    assert (view["name"], view["fingerprint"]) == ("user_activity", feature_fingerprints(HISTORY)["user_activity"])
    decision_id = ask(client, user_id="user 5")["decision_id"]
    (decision,) = (each for each in _logged(client, decisions_folder) if each.decision_id == decision_id)
    assert set(view["features"]) < set(decision.user_features)
    for name in ("history_items", "history_values", "user_event_count", "user_mean_value", "user_distinct_items_30d"):
        assert view["features"][name] == decision.user_features[name]
    times = [datetime.fromisoformat(moment) for moment in view["features"]["history_times"]]
    assert times == sorted(times)
    assert len(times) == HISTORY


@pytest.mark.parametrize("user", ["never seen", "a/b/features", "千と", "x" * 512])
def test_an_unknown_user_has_the_features_of_one(client: httpx.Client, user: str) -> None:
    found = client.get(f"/v1/users/{quote(user, safe='')}/features").json()
    assert (found["user_id"], found["known_user"], found["known_until"]) == (user, False, None)
    assert found["views"][0]["features"]["user_event_count"] == 0
    assert found["views"][0]["features"]["history_items"] == []


def test_what_was_told_a_moment_ago_is_in_the_features(client: httpx.Client) -> None:
    assert client.get("/v1/users/fresh/features").json()["known_user"] is False
    client.post("/v1/feedback", json={"events": [{"user_id": "fresh", "item_id": "item-4"}]}).raise_for_status()
    found = client.get("/v1/users/fresh/features").json()
    assert found["known_user"] is True
    assert found["views"][0]["features"]["history_items"] == ["item-4"]
    assert datetime.fromisoformat(found["known_until"]) <= datetime.fromisoformat(found["at"])


def test_the_models_say_where_they_come_from(client: httpx.Client, shop: Dataset) -> None:
    found = client.get("/v1/models").json()
    assert (found["champion"], found["refused"]) == ("champion", None)
    assert found["data_version"] == shop.manifest.data_version
    assert (found["object"], [model["id"] for model in found["data"]]) == ("list", [MODEL])
    (variant,) = found["variants"]
    assert variant["variant"] == "champion"
    assert (variant["items"], variant["new_items"]) == (len(shop.items()), 0)
    tower, ranker = variant["models"]
    assert (tower["model"], ranker["model"]) == ("two-tower", "ranker")
    for model in (tower, ranker):
        assert (model["version"], model["data_version"], model["git_commit"]) == ("1", "0", "0")
        assert model["history_length"] == HISTORY
        assert model["feature_views"] == feature_fingerprints(HISTORY)


def test_health_asks_the_model(client: httpx.Client, shop: Dataset) -> None:
    answer = client.get("/healthz").json()
    assert answer["status"] == "ok"
    assert answer["data_set"] == "shop"
    assert answer["replica"] == "replica-1"
    assert answer["models"] == {"two-tower": "1", "ranker": "1"}
    assert answer["data_version"] == shop.manifest.data_version
    assert answer["feature_views"] == feature_fingerprints(HISTORY)
    assert answer["probe_ms"] > 0
    assert answer["decision_log"]["dropped"] == 0


def test_the_decision_log_tells_how_the_answer_came_about(
    client: httpx.Client, decisions_folder: Path, shop: Dataset
) -> None:
    answer = ask(client, user_id="user 5", count=4, recent_items=["item-3"])
    similar = client.get("/v1/items/item-5/similar?count=2").json()
    logged = {each.decision_id: each for each in _logged(client, decisions_folder)}
    decision = logged[answer["decision_id"]]
    assert decision.request == {
        "user_id": "user 5",
        "count": 4,
        "recent_items": ["item-3"],
        "explain": False,
        "allow_items": None,
        "deny_items": [],
    }
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
    assert decision.store is not None
    assert decision.store.data_version == shop.manifest.data_version
    assert decision.store.fingerprints == feature_fingerprints(HISTORY)
    assert decision.user_features["history_items"][-1] == "item-3"
    assert decision.user_features["brought_items"] == ["item-3"]
    assert decision.everything["counted_events"] >= shop.manifest.events
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
    assert set(document["paths"]) == {
        "/v1/recommend",
        "/v1/recommend:batch",
        "/v1/items/{item_id}/similar",
        "/v1/users/{user_id}/features",
        "/v1/models",
        "/v1/feedback",
        "/healthz",
    }
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
