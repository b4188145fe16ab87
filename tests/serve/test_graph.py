"""The same answer wherever a stage runs; one call per micro-batch; nobody waits for somebody else's explanation."""

import asyncio
import dataclasses
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest

from cluster.assets import SMOLLM2, fetch
from serve.batch import Batch, Call, Stage
from serve.graph import RANKED, Graph, GraphConfig, Outcome, RemoteCall, StageName, StageUnavailableError
from serve.stages.explain import Explain, ExplainConfig
from serve.stages.profile import GatherProfiles
from serve.variant import Variant

pytestmark = pytest.mark.anyio

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CALLS = [Call(f"d{number}", f"user {number}", 5, ("item-1",) * (number % 2)) for number in range(12)]
Stages = dict[StageName, Stage]


class Remote:
    """Another process's stage: the batch is pickled on the way there and back, and the calls are counted."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[int] = []

    async def __call__(self, batch: Batch) -> Batch:
        self.calls.append(len(batch))
        await asyncio.sleep(0.01)
        answered: Batch = pickle.loads(pickle.dumps(self.stage.run(pickle.loads(pickle.dumps(batch)))))
        return answered


async def unavailable(_: Batch) -> Batch:
    raise StageUnavailableError("stage does not answer")


async def slow(batch: Batch) -> Batch:
    await asyncio.sleep(0.5)
    return batch


def graph_of(config: GraphConfig, stages: Stages, remote: dict[StageName, RemoteCall]) -> Graph:
    return Graph(config, stages, {"explain": unavailable} | remote, clock=lambda: NOW)


def answer(outcome: Outcome) -> tuple[list[int], list[float]]:
    return outcome.batch.codes_BK[0].tolist(), [round(score, 4) for score in outcome.batch.scores_BK[0].tolist()]


@pytest.fixture(scope="module")
def explain() -> Iterator[Explain]:
    return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, ExplainConfig(threads=1, parallel=2))


@pytest.mark.parametrize("remote", [("ranking",), ("retrieval", "ranking"), ("features", "filter"), RANKED])
async def test_a_stage_gives_the_same_answer_remotely(shop_stages: Stages, remote: tuple[StageName, ...]) -> None:
    local = graph_of(GraphConfig(), shop_stages, {})
    config = GraphConfig.model_validate(dict.fromkeys(remote, "remote"))
    calls = {name: Remote(shop_stages[name]) for name in remote}
    moved = graph_of(config, shop_stages, calls)
    expected = await asyncio.gather(*map(local.recommend, CALLS))
    found = await asyncio.gather(*map(moved.recommend, CALLS))
    assert list(map(answer, found)) == list(map(answer, expected))
    assert [call.calls for call in calls.values()] == [[len(CALLS)]] * len(remote)
    assert set(found[0].timings_ms) == {"queue", *RANKED, "total"}
    local.close()
    moved.close()


async def test_batches_grow_while_one_is_under_way(shop_stages: Stages) -> None:
    ranking = Remote(shop_stages["ranking"])
    graph = graph_of(GraphConfig(ranking="remote"), shop_stages, {"ranking": ranking})

    async def client(number: int) -> None:
        for _ in range(5):
            await graph.recommend(CALLS[number])

    await asyncio.gather(*map(client, range(12)))
    assert sum(ranking.calls) == 60
    assert len(ranking.calls) <= 15
    graph.close()


async def test_explanations_are_written_in_process_too(shop_stages: Stages, explain: Explain) -> None:
    config = GraphConfig(explain="in_process", explained_items=2)
    graph = Graph(config, {**shop_stages, "explain": explain}, {}, clock=lambda: NOW)
    wanted, plain = await asyncio.gather(
        graph.recommend(Call("a", "user 1", 5, explain=True)), graph.recommend(Call("b", "user 2", 5))
    )
    assert plain.batch.explanations == ()
    assert "explain" not in plain.timings_ms
    ((code, sentence), *_) = wanted.batch.explanations[0].items()
    assert code in wanted.batch.codes_BK[0, :2]
    assert sentence.endswith(".")
    assert wanted.timings_ms["explain"] > 0
    graph.close()


async def test_nobody_waits_for_the_explanations_of_others(shop_stages: Stages) -> None:
    graph = graph_of(GraphConfig(), shop_stages, {"explain": slow})
    start = time.monotonic()
    explained = asyncio.ensure_future(graph.recommend(Call("a", "user 1", 5, explain=True)))
    for number in range(5):
        await graph.recommend(CALLS[number])
    assert time.monotonic() - start < 0.4
    assert not explained.done()
    explained.cancel()
    graph.close()


class Backwards:
    """Re-ranks by turning everything round."""

    def run(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, codes_BK=batch.codes_BK[:, ::-1])


COLD, WARM = Call("cold", "nobody", 5, ("item-1",), explain=True), Call("warm", "user 2", 5)


async def test_only_cold_users_are_re_ranked_and_explained_in_that_order(
    shop_stages: Stages, shop_variant: Variant
) -> None:
    plain = graph_of(GraphConfig(), shop_stages, {})
    before = await asyncio.gather(plain.recommend(COLD), plain.recommend(WARM))
    rerank, explain = Remote(Backwards()), Remote(shop_stages["facts"])
    stages: Stages = {**shop_stages, "profile": GatherProfiles(shop_variant.catalogue, 10)}
    remote: dict[StageName, RemoteCall] = {"rerank": rerank, "explain": explain}
    graph = Graph(GraphConfig(rerank="remote"), stages, remote, clock=lambda: NOW, rerank_below=2)
    cold, warm, nobody = await asyncio.gather(*map(graph.recommend, (COLD, WARM, Call("probe", "", 1))))
    assert rerank.calls == explain.calls == [1]
    np.testing.assert_array_equal(cold.batch.codes_BK, before[0].batch.codes_BK[:, ::-1])
    np.testing.assert_array_equal(warm.batch.codes_BK, before[1].batch.codes_BK)
    assert cold.timings_ms["rerank"] > 0
    assert "rerank" not in {**warm.timings_ms, **nobody.timings_ms}
    plain.close()
    graph.close()


@pytest.mark.parametrize("stage", [unavailable, slow])
async def test_an_answer_goes_out_in_the_rankers_order(
    shop_stages: Stages, shop_variant: Variant, stage: RemoteCall
) -> None:
    plain = graph_of(GraphConfig(), shop_stages, {})
    stages: Stages = {**shop_stages, "profile": GatherProfiles(shop_variant.catalogue, 10)}
    config = GraphConfig(rerank="remote", rerank_timeout_s=0.1)
    remote: dict[StageName, RemoteCall] = {"rerank": stage, "explain": unavailable}
    graph = Graph(config, stages, remote, clock=lambda: NOW, rerank_below=2)
    outcome, expected = await graph.recommend(COLD), await plain.recommend(COLD)
    assert outcome.degraded == ("rerank", "explain")
    assert answer(outcome) == answer(expected)
    assert outcome.batch.profiles == ()
    plain.close()
    graph.close()


async def test_nobody_is_re_ranked_unless_the_config_says_where(shop_stages: Stages) -> None:
    graph = Graph(GraphConfig(), shop_stages, {"explain": unavailable}, clock=lambda: NOW, rerank_below=100)
    outcome = await graph.recommend(COLD)
    assert "rerank" not in outcome.timings_ms
    graph.close()


@pytest.mark.parametrize("stage", [unavailable, slow])
async def test_an_answer_goes_out_without_its_sentences(shop_stages: Stages, stage: RemoteCall) -> None:
    graph = graph_of(GraphConfig(explain_timeout_s=0.1), shop_stages, {"explain": stage})
    outcome = await graph.recommend(Call("a", "user 1", 5, explain=True))
    assert outcome.degraded == ("explain",)
    assert outcome.batch.explanations == ()
    assert len(outcome.batch.codes_BK[0]) > 5
    graph.close()


async def test_a_stage_that_every_answer_needs_is_missed(shop_stages: Stages) -> None:
    graph = graph_of(GraphConfig(ranking="remote"), shop_stages, {"ranking": unavailable})
    with pytest.raises(StageUnavailableError):
        await graph.recommend(CALLS[0])
    graph.close()


def test_the_config_says_what_is_where() -> None:
    config = GraphConfig(ranking="remote")
    assert config.remote() == ("ranking", "explain")
    assert config.in_process() == ("features", "retrieval", "filter", "facts")
    with pytest.raises(ValueError, match="in_process"):
        GraphConfig.model_validate({"ranking": "elsewhere"})
    with pytest.raises(ValueError, match="rankign"):
        GraphConfig.model_validate({"rankign": "remote"})
