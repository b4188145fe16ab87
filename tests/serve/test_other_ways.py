"""The services that ours is measured against answer as ours does."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from benchmarks.serving_plain import Batched, OneByOne, Stages
from benchmarks.serving_usual import DEPLOYED, merged
from serve.batch import Batch, Call, Stage
from serve.graph import RANKED, Graph, GraphConfig, Outcome, StageName
from tests.serve.graphs import unavailable

CALLS = [Call(f"d{number}", f"user {number}", 5, ("item-1",) * (number % 2)) for number in range(6)]


def _lists(outcomes: list[Outcome]) -> list[list[int]]:
    return [outcome.batch.codes_BK[0].tolist() for outcome in outcomes]


async def _ask(answering: OneByOne | Batched | Graph) -> list[list[int]]:
    return _lists(await asyncio.gather(*map(answering.recommend, CALLS)))


@pytest.fixture(scope="module")
def expected(shop_stages: dict[StageName, Stage]) -> list[list[int]]:
    graph = Graph(GraphConfig(), shop_stages, {"explain": unavailable})
    found = asyncio.run(_ask(graph))
    graph.close()
    return found


@pytest.mark.parametrize("answering", [OneByOne, Batched])
def test_by_hand(
    answering: Callable[[Stages], OneByOne | Batched],
    shop_stages: dict[StageName, Stage],
    expected: list[list[int]],
) -> None:
    stages = [(str(name), shop_stages[name]) for name in RANKED]

    async def ask() -> list[list[int]]:
        return await _ask(answering(stages))

    assert asyncio.run(ask()) == expected


def test_batched_at_every_callee(shop_stages: dict[StageName, Stage], expected: list[list[int]]) -> None:
    batches = [Batch(calls=(call,), at=datetime.now(UTC)) for call in CALLS]
    for name in DEPLOYED:
        answered = shop_stages[name].run(merged(batches))
        batches = [answered.select([row]) for row in range(len(answered))]
    assert [batch.codes_BK[0].tolist() for batch in batches] == expected
