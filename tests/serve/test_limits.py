"""Overload, slowness and shut-down as a client sees them: a problem that says when to ask again, and no lost answer."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from data.online.store import OnlineStore
from serve.batch import Batch, Stage
from serve.decisions import DecisionLog
from serve.graph import Graph, GraphConfig, StageName
from serve.http import build_http
from serve.limits import Limits
from serve.problems import ProblemError
from serve.service import Place, Service
from serve.takeover import Live
from serve.variant import Variant
from tests.serve.conftest import listening, no_language_model

pytestmark = pytest.mark.anyio
QUESTION = {"user_id": "user 1", "count": 3}


class Gate:
    """A stage that holds batches back until it is opened."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.passed = 0
        """Requests that went through."""
        self.reached = threading.Event()
        self.opened = threading.Event()

    def run(self, batch: Batch) -> Batch:
        self.reached.set()
        assert self.opened.wait(30)
        self.passed += len(batch)
        return self._stage.run(batch)


@pytest.fixture
def gate(shop_stages: dict[StageName, Stage]) -> Gate:
    return Gate(shop_stages["ranking"])


@pytest.fixture
def live(
    gate: Gate,
    shop_stages: dict[StageName, Stage],
    shop_variant: Variant,
    shop_store: OnlineStore,
    tmp_path: Path,
) -> Live:
    """One that ranks a batch at a time, when the gate is open."""
    decisions = DecisionLog(tmp_path, "replica-1")
    config = GraphConfig(max_batch_size=1, max_waiting=100, budget_s=30)
    graph = Graph(config, {**shop_stages, "ranking": gate}, {"explain": no_language_model})
    return Live(
        Service(place=Place("shop", "r"), variant=shop_variant, graph=graph, store=shop_store, decisions=decisions),
        decisions,
    )


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://towerline")


async def test_a_full_queue_is_429_with_retry_after_and_who_waits_is_answered(live: Live, gate: Gate) -> None:
    async with client_of(build_http(live)) as client:
        asked = [asyncio.ensure_future(client.post("/v1/recommend", json=QUESTION)) for _ in range(110)]
        refused = await next(asyncio.as_completed(asked))
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["type"] == "urn:towerline:problem:too-busy"
        gate.opened.set()
        codes = [response.status_code for response in await asyncio.gather(*asked)]
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 100
    await live.close()


async def test_each_request_of_a_batch_takes_a_place_in_the_queue(live: Live, gate: Gate) -> None:
    """Of batches that come at the same moment, those for which there is no room are refused as a whole."""
    async with client_of(build_http(live)) as client:
        batch = {"requests": [QUESTION] * 40}
        asked = [asyncio.ensure_future(client.post("/v1/recommend:batch", json=batch)) for _ in range(6)]
        refused = await next(asyncio.as_completed(asked))
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:towerline:problem:too-busy")
        gate.opened.set()
        responses = await asyncio.gather(*asked)
    answered = [response for response in responses if response.status_code == 200]
    assert 1 <= len(answered) <= 3
    assert all(len(response.json()["answers"]) == 40 for response in answered)
    await live.close()


async def test_what_takes_too_long_is_a_problem(live: Live, gate: Gate) -> None:
    async with client_of(build_http(live, request_timeout_s=0.05)) as client:
        response = await client.post("/v1/recommend", json=QUESTION)
    assert response.status_code == 504
    assert "within 0.05 s" in response.json()["detail"]
    gate.opened.set()
    await live.close()


async def test_shutting_down_answers_what_is_under_way_and_takes_no_more(live: Live, gate: Gate) -> None:
    async with client_of(build_http(live)) as client:
        asked = asyncio.ensure_future(client.post("/v1/recommend", json=QUESTION))
        await asyncio.to_thread(gate.reached.wait)
        closing = asyncio.ensure_future(live.close())
        await asyncio.sleep(0)
        late = await client.post("/v1/recommend", json=QUESTION)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert not closing.done()
        gate.opened.set()
        assert (await asked).status_code == 200
        await closing


async def test_a_request_whose_client_hangs_up_before_its_turn_is_not_ranked(live: Live, gate: Gate) -> None:
    gate.opened.set()
    with listening(build_http(live)) as url:
        before = gate.passed
        gate.opened.clear()
        gate.reached.clear()
        under_way = asyncio.create_task(asked_of(url, 60))
        await asyncio.to_thread(gate.reached.wait)
        waiting = [asyncio.create_task(asked_of(url, 0.5)) for _ in range(5)]
        assert await asyncio.gather(*waiting) == [None] * 5
        gate.opened.set()
        assert await under_way == 200
        assert await asked_of(url, 60) == 200
        assert gate.passed == before + 2


async def asked_of(url: str, patience_s: float) -> int | None:
    """The status of an answer, None if it took too long."""
    async with httpx.AsyncClient(timeout=patience_s) as client:
        try:
            return (await client.post(f"{url}/v1/recommend", json=QUESTION)).status_code
        except httpx.ReadTimeout:
            return None


async def test_the_places_at_the_store_are_given_back() -> None:
    limits = Limits(places=1)
    async with limits.place():
        with pytest.raises(ProblemError, match="too many requests use the online store"):
            async with limits.place():
                pass
    async with limits.place():
        pass
