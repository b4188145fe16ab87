"""Retrieval divided among shards: the same candidates as of the whole catalogue, and no answer without one of them."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pytest

from serve.batch import Batch, Call, Stage
from serve.eligibility import RulesConfig
from serve.graph import StageName
from serve.stages.retrieval import Retrieval
from serve.stages.shards import Election, RetrievalShard, sharded
from serve.steps import RemoteCall, StageUnavailableError
from serve.variant import Variant
from tests.serve.conftest import USERS

CALLS = (
    *(Call(f"d{number}", user, 5) for number, user in enumerate(USERS)),
    Call("brought", "nobody", 5, ("item-1", "item-2")),
    Call("some", USERS[0], 5, allow=("item-3", "item-4")),
    Call("none", USERS[0], 5, allow=()),
)


@pytest.fixture
def batch(shop_stages: dict[StageName, Stage]) -> Batch:
    return shop_stages["features"].run(Batch(CALLS, datetime.now(UTC)))


def shard_calls(variant: Variant, rules: RulesConfig, candidates: int, shards: int) -> list[RemoteCall]:
    def call_of(number: int) -> RemoteCall:
        shard = RetrievalShard(variant, candidates, rules, number=number, shards=shards)

        async def call(batch: Batch) -> Batch:
            return await asyncio.to_thread(shard.run, batch)

        return call

    return [call_of(number) for number in range(shards)]


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize("rules", [RulesConfig(), RulesConfig(deny=("item-7",), max_per_value={"colour": 2})])
def test_candidates_are_those_of_the_whole_catalogue(
    shop_variant: Variant, batch: Batch, rules: RulesConfig, shards: int
) -> None:
    expected = Retrieval(shop_variant, 20, rules).run(batch)
    call = sharded(shard_calls(shop_variant, rules, 20, shards), Election(shop_variant, 20, rules))
    found = asyncio.run(call(batch))
    np.testing.assert_array_equal(found.codes_BK, expected.codes_BK)
    np.testing.assert_allclose(found.retrieval_BK, expected.retrieval_BK, rtol=1e-5, atol=1e-5)
    assert found.sources_BKS is not None
    np.testing.assert_allclose(found.sources_BKS, expected.sources_BKS, rtol=1e-5, atol=1e-5)
    assert found.named_by == expected.named_by
    assert found.users.equals(batch.users)


@pytest.mark.anyio
async def test_without_one_of_the_shards_there_is_no_answer_and_nobody_waits_for_the_others(
    shop_variant: Variant, batch: Batch
) -> None:
    cancelled = asyncio.Event()

    async def fails(_: Batch) -> Batch:
        raise StageUnavailableError("stage 'retrieval' does not answer")

    async def waits(batch: Batch) -> Batch:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return batch

    with pytest.raises(StageUnavailableError, match="does not answer"):
        await sharded([waits, fails], Election(shop_variant, 20))(batch)
    await asyncio.wait_for(cancelled.wait(), 60)
