"""The application on a real Ray Serve, from a real registry: two gateways, a remote language model, real HTTP."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
import ray

from benchmarks.faults import replicas
from cluster.errors import TowerlineError
from cluster.session import RaySession
from cluster.settings import Settings
from data.dataset import Dataset
from serve.config import AppConfig, Replicas
from serve.decisions import Decision, read_decisions
from serve.generation import MODEL, SMOLLM2_BY_LLAMA, CompletionsConfig
from serve.graph import GraphConfig
from serve.loading import online_store
from serve.session import require_servable, running
from serve.stages.explain import prompt_version
from tests.serve.conftest import HISTORY
from tests.waiting import wait_until

GetAsItIs = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def config() -> AppConfig:
    return AppConfig(
        dataset="shop",
        graph=GraphConfig(explain_timeout_s=300),
        completions=CompletionsConfig(parallel=1, waiting=0),
        gateway_replicas=Replicas(min=2, max=2, num_cpus=0.1),
    )


@pytest.fixture(scope="module")
def url(
    ray_session: RaySession,  # noqa: ARG001
    settings: Settings,
    config: AppConfig,
    champion: dict[str, str],  # noqa: ARG001
) -> Iterator[str]:
    with running(settings, config) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=300) as client:
        yield client


def test_no_champion_is_said_before_anything_starts(tmp_path: Path, shop: Dataset) -> None:
    settings = Settings(home=tmp_path)
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    with pytest.raises(TowerlineError, match="no champion of data set 'shop'"):
        require_servable(settings, AppConfig(dataset="shop"))
    with pytest.raises(TowerlineError, match="data set 'shoes' does not exist"):
        require_servable(settings, AppConfig(dataset="shoes"))
    assert not ray.is_initialized() or ray.serve.status().proxies == {}


def test_a_port_in_use_is_named(settings: Settings, champion: dict[str, str], config: AppConfig) -> None:  # noqa: ARG001
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        with pytest.raises(TowerlineError, match=rf"127\.0\.0\.1:{taken}.*TOWERLINE_SERVE_PORT"):
            require_servable(Settings(home=settings.home, serve_port=taken), config)


def test_a_recommendation_with_explanations(client: httpx.Client, champion: dict[str, str], settings: Settings) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "user 3", "count": 5, "explain": True}).json()
    assert answer["degraded"] == []
    assert answer["models"] == champion
    assert answer["variant"] == "variant-a"
    assert len(answer["items"]) == 5
    for item in answer["items"][:3]:
        name = (item["title"] or item["item_id"]).replace("\x00", " ").replace("\n", " ")
        assert item["explanation"].startswith(f"{name} ")
    assert [item["explanation"] for item in answer["items"][3:]] == [None, None]
    assert answer["timings_ms"]["explain"] > 0
    wait_until(lambda: answer["decision_id"] in logged(settings))
    entry = logged(settings)[answer["decision_id"]]
    assert entry.prompt_version == prompt_version()
    assert entry.language_model == f"{SMOLLM2_BY_LLAMA.name} {SMOLLM2_BY_LLAMA.fingerprint}"


def logged(settings: Settings) -> dict[str, Decision]:
    """The decision log by id; its folder comes with the first decision."""
    folder = settings.home / "decisions" / "shop"
    return {each.decision_id: each for each in read_decisions(folder)} if folder.exists() else {}


def test_everybody_else_is_served_while_an_explanation_is_being_written(client: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        explained = pool.submit(client.post, "/v1/recommend", json={"user_id": "user 4", "count": 3, "explain": True})
        served = 0
        while not explained.done():
            assert client.post("/v1/recommend", json={"user_id": "user 5"}).status_code == 200
            served += not explained.done()
    assert explained.result().json()["degraded"] == []
    assert served >= 2


def test_openais_client_gets_a_stream_and_its_place_is_free_when_it_hangs_up(url: str) -> None:
    """The language model writes one completion at a time here, and none waits."""
    long: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 500, "stream": True}
    short: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        for _ in range(2):
            with client.completions.create(**long) as stream:
                for _, chunk in zip(range(3), stream, strict=False):
                    assert chunk.choices[0].text
                with pytest.raises(openai.RateLimitError, match="are being written"):
                    client.chat.completions.create(**short)
            deadline = time.monotonic() + 3
            while (answer := _unless_busy(client, short)) is None:
                assert time.monotonic() < deadline
        assert answer.choices[0].finish_reason == "length"


def _unless_busy(client: openai.OpenAI, asked: dict[str, Any]) -> Any:
    try:
        return client.chat.completions.create(**asked)
    except openai.RateLimitError:
        return None


def test_odd_item_ids_survive_the_proxy(url: str, odd_item: str, get_as_it_is: GetAsItIs) -> None:
    assert get_as_it_is(url, f"/v1/items/{quote(odd_item, safe='')}/similar?count=2")["item_id"] == odd_item


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (
            400,
            {
                "method": "POST",
                "url": "/v1/recommend",
                "content": b"{",
                "headers": {"content-type": "application/json"},
            },
        ),
        (404, {"method": "GET", "url": "/v1/items/none/similar"}),
        (404, {"method": "GET", "url": "/nowhere"}),
        (405, {"method": "GET", "url": "/v1/recommend"}),
        (413, {"method": "POST", "url": "/v1/feedback", "content": b" " * (3 * 2**20)}),
        (422, {"method": "POST", "url": "/v1/recommend", "json": {"user_id": "u", "count": 0}}),
    ],
)
def test_errors_are_problems_behind_the_proxy_too(client: httpx.Client, status: int, request_: dict[str, Any]) -> None:
    response = client.request(**request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_the_openapi_document_and_its_page_are_served(client: httpx.Client) -> None:
    assert "/v1/recommend" in client.get("/openapi.json").json()["paths"]
    assert "swagger-ui" in client.get("/docs").text


def test_feedback_survives_the_kill_of_the_gateways_and_so_do_all_older_decisions(
    client: httpx.Client, settings: Settings
) -> None:
    """Both gateways write decisions; after kill -9 all but the last of them are there, and service comes back."""
    answering, gateways = _replicas(client), replicas("Gateway")
    assert len(answering) == len(gateways) == 2
    asked: dict[str, float] = {}
    for number in range(60):
        answer = client.post("/v1/recommend", json={"user_id": f"user {number % 12}", "count": 2}).json()
        asked[answer["decision_id"]] = time.time()
    stored = client.post("/v1/feedback", json={"events": [{"user_id": "durable", "item_id": "item-7", "value": 2}]})
    for gateway in gateways:
        gateway.kill()
    killed = time.time()
    (event_id,) = stored.json()["event_ids"]
    assert event_id in online_store(settings, "shop", HISTORY).appended_events()["event_id"]
    kept = logged(settings)
    lost = [at for decision_id, at in asked.items() if decision_id not in kept]
    assert all(at > killed - 5 for at in lost)
    assert len(lost) < len(asked) / 2
    assert {kept[decision_id].replica for decision_id in asked if decision_id in kept} == answering
    assert _recovers(client, before=answering)
    answer = client.post("/v1/recommend", json={"user_id": "durable"}).json()
    assert answer["known_user"] is True
    assert "item-7" not in [item["item_id"] for item in answer["items"]]


def _replicas(client: httpx.Client) -> set[str]:
    """The replicas that answer, found by asking many times."""
    return {client.get("/healthz").json()["replica"] for _ in range(60)}


def _recovers(client: httpx.Client, before: set[str]) -> bool:
    for _ in range(300):
        try:
            response = client.get("/healthz", timeout=30)
            if response.status_code == 200 and response.json()["replica"] not in before:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return False


def test_an_endpoint_that_runs_is_not_started_twice(url: str, settings: Settings, config: AppConfig) -> None:  # noqa: ARG001
    with pytest.raises(TowerlineError, match="already runs"), running(settings, config):
        pass
