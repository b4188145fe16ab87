"""Only cold users are re-ranked by the language model, and one that fails or is too slow costs no answer."""

import asyncio
import dataclasses

import numpy as np
import pytest

from cluster.errors import TowerlineError
from serve.batch import Batch, Call, Stage
from serve.breaker import BreakerConfig
from serve.graph import Graph, GraphConfig, StageName
from serve.stages.diversity import Diversity
from serve.stages.fallbacks import RankersOrder, Unchanged
from serve.stages.profile import GatherProfiles
from serve.steps import RemoteCall
from serve.variant import Variant
from tests.serve.graphs import NOW, Remote, Stages, graph_of, never, unavailable
from train.vocabulary import UNKNOWN

pytestmark = pytest.mark.anyio


class Backwards:
    """Re-ranks by turning everything round."""

    def run(self, batch: Batch) -> Batch:
        width = batch.codes_BK.shape[1]
        return batch.reordered(np.tile(np.arange(width)[::-1], (len(batch), 1)))


class TopTwoSwapped:
    """Re-ranks the first two items."""

    def run(self, batch: Batch) -> Batch:
        width = batch.codes_BK.shape[1]
        return batch.reordered(np.tile([1, 0, *range(2, width)], (len(batch), 1)))


class Names:
    """Instead of sentences: the names of the items that they would be about."""

    def run(self, batch: Batch) -> Batch:
        return dataclasses.replace(
            batch, explanations=tuple({each.code: each.item for each in facts} for facts in batch.facts)
        )


class Broken:
    """A language model that gives no likelihood."""

    def run(self, batch: Batch) -> Batch:
        raise TowerlineError("the language model gives no likelihood")


COLD, WARM = Call("cold", "nobody", 5, ("item-1",), explain=True), Call("warm", "user 2", 5)


def reranking(
    stages: Stages, variant: Variant, stage: RemoteCall | Stage, config: GraphConfig | None = None, below: int = 2
) -> Graph:
    """A graph that re-ranks users with fewer than `below` events by `stage`, a remote one or one in this process."""
    config = config or GraphConfig(budget_s=30, rerank_timeout_s=20)
    config = config.model_copy(update={"rerank": "remote" if callable(stage) else "in_process"})
    remote: dict[StageName, RemoteCall] = {"explain": Remote(Names())}
    stages = {**stages, "profile": GatherProfiles(variant.catalogue, 10)}
    if callable(stage):
        remote["rerank"] = stage
    else:
        stages["rerank"] = stage
    fallbacks: Stages = {"rerank": RankersOrder(), "diversity": Unchanged()}
    return Graph(config, stages, remote, fallbacks, lambda: NOW, rerank_below=below)


async def rankers_order(stages: Stages, call: Call) -> list[int]:
    graph = graph_of(GraphConfig(), stages, {})
    codes: list[int] = (await graph.recommend(call)).batch.codes_BK[0].tolist()
    graph.close()
    return codes


@pytest.mark.parametrize("remotely", [True, False])
async def test_only_cold_users_are_re_ranked_and_explained_in_that_order(
    shop_stages: Stages, shop_variant: Variant, remotely: bool
) -> None:
    rerank = Remote(Backwards())
    graph = reranking(shop_stages, shop_variant, rerank if remotely else Backwards())
    cold, warm, nobody = await asyncio.gather(*map(graph.recommend, (COLD, WARM, Call("probe", "", 1))))
    assert rerank.calls == ([1] if remotely else [])
    codes = (await rankers_order(shop_stages, COLD))[::-1]
    assert cold.batch.codes_BK[0].tolist() == codes
    assert list(cold.batch.explanations[0]) == [code for code in codes[:3] if code != UNKNOWN]
    assert cold.batch.profiles
    assert warm.batch.codes_BK[0].tolist() == await rankers_order(shop_stages, WARM)
    assert cold.timings_ms["rerank"] > 0
    assert "rerank" not in {**warm.timings_ms, **nobody.timings_ms}
    assert cold.degraded == warm.degraded == nobody.degraded == ()
    graph.close()


@pytest.mark.parametrize("stage", [unavailable, never, Broken()])
async def test_an_answer_goes_out_in_the_rankers_order(
    shop_stages: Stages, shop_variant: Variant, stage: RemoteCall | Stage
) -> None:
    graph = reranking(shop_stages, shop_variant, stage, GraphConfig(rerank_timeout_s=0.1, budget_s=30))
    outcome = await graph.recommend(COLD)
    assert outcome.degraded == ("rerank",)
    assert outcome.batch.codes_BK[0].tolist() == await rankers_order(shop_stages, COLD)
    assert outcome.batch.profiles == ()
    assert outcome.batch.explanations[0]
    graph.close()


async def test_re_ranking_leaves_time_for_what_comes_after_it(shop_stages: Stages, shop_variant: Variant) -> None:
    """The request's own budget counts, and the stage is told of its share."""
    budgets: list[float] = []

    async def slowly(batch: Batch) -> Batch:
        budgets.append(batch.budget_s)
        return await never(batch)

    graph = reranking(shop_stages, shop_variant, slowly, GraphConfig(rerank_timeout_s=60, stage_share=0.02))
    outcome = await graph.recommend(dataclasses.replace(COLD, explain=False, budget_s=25))
    assert outcome.degraded == ("rerank",)
    assert budgets[0] <= 0.02 * 0.02 * 25
    graph.close()


async def test_nobody_waits_for_the_re_ranking_of_others(shop_stages: Stages, shop_variant: Variant) -> None:
    """And no more wait for it than may: the next one gets the ranker's order."""
    done = asyncio.Event()

    async def waiting(batch: Batch) -> Batch:
        await done.wait()
        return Backwards().run(batch)

    config = GraphConfig(rerank_timeout_s=60, rerank_waiting=1, budget_s=30)
    graph = reranking(shop_stages, shop_variant, waiting, config)
    cold = asyncio.ensure_future(graph.recommend(COLD))
    assert (await graph.recommend(WARM)).degraded == ()
    assert (await graph.recommend(dataclasses.replace(COLD, decision_id="late"))).degraded == ("rerank",)
    assert not cold.done()
    done.set()
    assert (await cold).degraded == ()
    assert (await graph.recommend(COLD)).degraded == ()
    graph.close()


async def test_re_ranking_that_fails_again_and_again_is_asked_no_more(
    shop_stages: Stages, shop_variant: Variant
) -> None:
    graph = reranking(
        shop_stages, shop_variant, unavailable, GraphConfig(breaker=BreakerConfig(failures=2, open_s=3600))
    )
    for circuit in ("closed", "open", "open"):
        assert (await graph.recommend(COLD)).degraded == ("rerank",)
        assert graph.circuits["rerank"] == circuit
    assert (await graph.recommend(WARM)).degraded == ()
    graph.close()


async def test_diversity_keeps_to_the_new_order(shop_stages: Stages, shop_variant: Variant) -> None:
    """It does not put back what was re-ranked, although each item keeps the ranker's score."""
    stages: Stages = {**shop_stages, "diversity": Diversity(shop_variant, 0.999999)}
    graph = reranking(stages, shop_variant, TopTwoSwapped())
    outcome, codes = await graph.recommend(COLD), await rankers_order(shop_stages, COLD)
    assert outcome.batch.codes_BK[0, :4].tolist() == [codes[1], codes[0], *codes[2:4]]
    graph.close()


async def test_the_order_of_retrieval_is_not_re_ranked(
    shop_stages: Stages, shop_fallbacks: Stages, shop_variant: Variant
) -> None:
    rerank = Remote(Backwards())
    stages = {**shop_stages, "profile": GatherProfiles(shop_variant.catalogue, 10)}
    remote: dict[StageName, RemoteCall] = {"ranking": unavailable, "rerank": rerank, "explain": unavailable}
    config = GraphConfig(ranking="remote", rerank="remote")
    graph = Graph(config, stages, remote, shop_fallbacks, lambda: NOW, rerank_below=2)
    assert (await graph.recommend(COLD)).degraded == ("ranking", "explain")
    assert rerank.calls == []
    graph.close()


async def test_nobody_is_re_ranked_unless_the_config_says_where(shop_stages: Stages) -> None:
    graph = Graph(GraphConfig(), shop_stages, {"explain": unavailable}, clock=lambda: NOW, rerank_below=100)
    outcome = await graph.recommend(COLD)
    assert "rerank" not in outcome.timings_ms
    graph.close()
