"""What was asked by a client that hangs up is given up, and counted as such."""

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request

from serve.disconnects import ClientGoneError, unless_gone
from serve.measured import Measured
from serve.metrics import Metrics
from serve.problems import install
from tests.serve.conftest import listening

pytestmark = pytest.mark.anyio


class Work:
    """Takes as long as it is asked to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.given_up = threading.Event()

    async def run(self, seconds: float) -> str:
        self.begun.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return "done"


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def url(work: Work, metrics: Metrics) -> Iterator[str]:
    app = FastAPI()

    @app.post("/wait/{seconds}")
    async def answer(seconds: float, http: Request) -> str:
        return await unless_gone(http.receive, work.run(seconds))

    install(app, 1000)
    app.add_middleware(Measured, metrics=metrics)
    with listening(app) as url:
        yield url


def test_who_waits_is_answered(url: str, work: Work) -> None:
    assert httpx.post(f"{url}/wait/0.1", json={}).json() == "done"
    assert not work.given_up.is_set()


def test_work_for_a_client_that_hangs_up_is_given_up_and_counted(url: str, work: Work, metrics: Metrics) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/wait/60", json={}, timeout=0.3)
    assert work.begun.is_set()
    assert work.given_up.wait(10)
    assert httpx.post(f"{url}/wait/0", json={}).status_code == 200
    exposition = metrics.exposition()
    assert exposition is not None
    assert b'towerline_requests_total{endpoint="/wait/{seconds}",status="499"} 1.0' in exposition


async def test_who_cancels_the_request_is_told_so(work: Work) -> None:
    """It is no client that has gone."""
    asked = asyncio.create_task(unless_gone(never, work.run(60)))
    await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_a_time_limit_around_it_holds(work: Work) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await unless_gone(never, work.run(60))
    assert work.given_up.is_set()


async def test_the_task_goes_on_after_a_client_has_gone(work: Work) -> None:
    with pytest.raises(ClientGoneError):
        await unless_gone(at_once, work.run(60))
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    assert await unless_gone(never, work.run(0)) == "done"


async def never() -> dict[str, str]:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def at_once() -> dict[str, str]:
    return {"type": "http.disconnect"}
