"""Stages moved to deployments of their own by one line of config each: the same answers from a real Ray Serve.

The language model has no replica until somebody asks for it, and none again when nobody has for a while.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc
import httpx
import pytest
import ray.serve
from google.protobuf.json_format import MessageToDict
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from benchmarks.faults import replicas
from cluster.session import RaySession
from cluster.settings import Settings
from serve.app import NAME
from serve.batch import Batch, Call
from serve.config import AppConfig, Replicas
from serve.generation import MODEL
from serve.graph import RANKED, GraphConfig
from serve.loading import Parts
from serve.rpc import recommender_pb2 as messages
from serve.rpc.recommender_pb2_grpc import RecommenderStub
from serve.session import running
from serve.steps import run_stages
from serve.variant import Variant
from tests.ports import free_port
from tests.waiting import wait_until

SMALL = Replicas(num_cpus=0.1)
CONFIG = AppConfig(
    dataset="shop",
    graph=GraphConfig(retrieval="remote", retrieval_shards=2, ranking="remote"),
    gateway_replicas=SMALL,
    stage_replicas=SMALL,
    explain_replicas=Replicas(num_cpus=0.1, min=0, downscale_delay_s=5),
)
GRPC_PORT = free_port()
CALLS = [Call("d", f"user {number}", 5, ("item-2",) * (number % 2)) for number in range(6)]


@pytest.fixture(scope="module")
def url(
    ray_session: RaySession,  # noqa: ARG001
    settings: Settings,
    champion: dict[str, str],  # noqa: ARG001
) -> Iterator[str]:
    """An endpoint whose retrieval, in two shards, and ranking are remote, over HTTP and gRPC."""
    with running(settings.model_copy(update={"serve_grpc_port": GRPC_PORT}), CONFIG) as url:
        yield url


@pytest.fixture(scope="module")
def channel(url: str) -> Iterator[grpc.Channel]:
    assert url
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        yield channel


def test_each_remote_stage_is_a_deployment(url: str) -> None:  # noqa: ARG001
    deployments = ray.serve.status().applications[NAME].deployments
    assert set(deployments) == {
        "Gateway",
        "RetrievalShardReplica0",
        "RetrievalShardReplica1",
        "RankingReplica",
        "ExplainReplica",
    }
    assert all(each.status.value == "HEALTHY" for each in deployments.values())


def test_the_answers_are_those_of_the_stages_in_one_process(
    url: str, settings: Settings, shop_variant: Variant
) -> None:
    parts = Parts(settings, CONFIG, "variant-a")
    expected = run_stages([(name, parts.stage(name)) for name in RANKED], Batch(tuple(CALLS), datetime.now(UTC)))
    for row, call in enumerate(CALLS):
        question = {"user_id": call.user_id, "count": call.count, "recent_items": call.recent_items}
        items = httpx.post(f"{url}/v1/recommend", json=question, timeout=300).json()["items"]
        codes = expected.codes_BK[row, : call.count]
        assert [item["item_id"] for item in items] == [shop_variant.catalogue.item_id(code) for code in codes]
        assert [item["score"] for item in items] == pytest.approx(expected.scores_BK[row, : call.count], abs=1e-5)


def test_grpc_answers_as_http_does(url: str, channel: grpc.Channel) -> None:
    stub = RecommenderStub(channel)  # type: ignore[no-untyped-call]
    for count, allowed in ((None, None), (3, None), (5, ["item-1", "item-2"]), (5, [])):
        question = {"user_id": "user 3", "deny_items": ["item-9"], "recent_items": ["item-2"]}
        question |= {"count": count} if count else {}
        message = messages.RecommendRequest(**question)
        if allowed is not None:
            message.allow_items.item_ids.extend(allowed)
            message.allow_items.SetInParent()
            question["allow_items"] = allowed
        answer = stub.Recommend(message, timeout=300)
        told = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        expected = httpx.post(f"{url}/v1/recommend", json=question, timeout=300).json()
        items = [{name: value for name, value in item.items() if value is not None} for item in expected["items"]]
        assert told["items"] == items
        assert {name: told[name] for name in ("user_id", "known_user", "variant", "models", "degraded")} == {
            name: expected[name] for name in ("user_id", "known_user", "variant", "models", "degraded")
        }
        assert set(told["timings_ms"]) == set(expected["timings_ms"])


@pytest.mark.parametrize(
    ("message", "details"),
    [
        (messages.RecommendRequest(), "user_id: Field required"),
        (messages.RecommendRequest(user_id="u", count=0), "count: Input should be greater than or equal to 1"),
        (
            messages.RecommendRequest(user_id="u", recent_items=["a", ""]),
            "recent_items[1]: String should have at least 1 character",
        ),
    ],
)
def test_grpc_names_the_field_that_is_wrong(
    channel: grpc.Channel, message: messages.RecommendRequest, details: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        RecommenderStub(channel).Recommend(message, timeout=300)  # type: ignore[no-untyped-call]
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)


def test_grpc_says_what_it_offers(channel: grpc.Channel) -> None:
    found = ProtoReflectionDescriptorDatabase(channel)
    assert "towerline.v1.Recommender" in found.get_services()
    described = found.FindFileContainingSymbol("towerline.v1.Recommender")
    assert [method.name for method in described.service[0].method] == ["Recommend"]


def test_a_language_model_without_a_replica_is_done_without_and_started(url: str) -> None:
    question = {"user_id": "user 3", "count": 2, "explain": True}
    prompt = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2}
    with httpx.Client(base_url=url, timeout=60) as client:
        started = time.monotonic()
        answer = client.post("/v1/recommend", json=question).json()
        assert answer["degraded"] == ["explain"]
        assert [item["explanation"] for item in answer["items"]] == [None, None]
        refused = client.post("/v1/completions", json=prompt)
        assert time.monotonic() - started < CONFIG.graph.explain_timeout_s
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "one is being started" in refused.json()["error"]["message"]
        assert client.get("/healthz").json()["circuits"]["explain"] == "closed"
        while client.post("/v1/completions", json=prompt).status_code == 503:
            assert time.monotonic() - started < 120
            time.sleep(0.2)
        assert client.post("/v1/completions", json=prompt).json()["usage"]["completion_tokens"] == 2
        answer = client.post("/v1/recommend", json=question).json()
        assert answer["degraded"] == []
        assert all(item["explanation"] for item in answer["items"])


def test_a_language_model_that_nobody_asks_loses_its_replica(url: str) -> None:
    wait_until(lambda: not replicas("ExplainReplica"))
    answer = httpx.post(f"{url}/v1/recommend", json={"user_id": "user 3", "count": 2, "explain": True}, timeout=60)
    assert answer.json()["degraded"] == ["explain"]
