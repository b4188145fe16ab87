"""An answer goes out in time, although a stage fails, is too slow or is still being started."""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest

from serve.batch import Batch, Call
from serve.breaker import BreakerConfig
from serve.graph import RANKED, Graph, GraphConfig, StageName, TooLateError
from serve.steps import InProcess, RemoteCall, StageColdError, StageUnavailableError, run_stages
from tests.serve.graphs import CALLS, NOW, Stages, degrading, graph_of, never, slow, unavailable
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("stage", [unavailable, slow])
async def test_an_answer_goes_out_without_its_sentences(shop_stages: Stages, stage: RemoteCall) -> None:
    graph = graph_of(GraphConfig(explain_timeout_s=0.1), shop_stages, {"explain": stage})
    outcome = await graph.recommend(Call("a", "user 1", 5, explain=True))
    assert outcome.degraded == ("explain",)
    assert outcome.batch.explanations == ()
    assert len(outcome.batch.codes_BK[0]) > 5
    graph.close()


@pytest.mark.parametrize("stage", ["features", "filter"])
async def test_a_stage_that_every_answer_needs_is_missed(
    shop_stages: Stages, shop_fallbacks: Stages, stage: StageName
) -> None:
    """What was seen stays out, or there is no answer."""
    config = GraphConfig.model_validate({stage: "remote"})
    graph = Graph(config, shop_stages, {"explain": unavailable, stage: unavailable}, shop_fallbacks, lambda: NOW)
    with pytest.raises(StageUnavailableError, match="stage does not answer"):
        await graph.recommend(CALLS[0])
    graph.close()


@pytest.mark.parametrize("stage", [unavailable, never])
async def test_without_ranking_the_order_is_that_of_retrieval(
    shop_stages: Stages, shop_fallbacks: Stages, stage: RemoteCall
) -> None:
    graph = degrading(shop_stages, shop_fallbacks, {"ranking": stage})
    call = Call("d", "user 3", 5, explain=True)
    outcome = await graph.recommend(call)
    before = run_stages([(name, shop_stages[name]) for name in RANKED[:3]], Batch((call,), NOW))
    filled = before.codes_BK[0] != UNKNOWN
    assert outcome.degraded == ("ranking", "explain")
    assert outcome.batch.codes_BK[0].tolist() == before.codes_BK[0].tolist()
    assert outcome.batch.scores_BK[0, filled].tolist() == before.retrieval_BK[0, filled].tolist()
    graph.close()


@pytest.mark.parametrize("stage", [unavailable, never])
async def test_without_retrieval_it_is_the_most_popular_unseen_items(
    shop_stages: Stages, shop_fallbacks: Stages, shop_retrieval: RetrievalModel, stage: RemoteCall
) -> None:
    graph = degrading(shop_stages, shop_fallbacks, {"retrieval": stage, "ranking": unavailable})
    outcome = await graph.recommend(Call("d", "user 3", 5))
    assert outcome.degraded == ("retrieval", "ranking")
    frequency_I = shop_retrieval.network.item_frequency_I.numpy()
    seen = {shop_retrieval.vocabulary.item_code(item) for item in outcome.batch.seen[0]}
    popular = [code for code in np.argsort(-frequency_I[1:], kind="stable") + 1 if code not in seen]
    codes = outcome.batch.codes_BK[0]
    assert codes[codes != UNKNOWN].tolist() == popular
    graph.close()


async def test_the_ranker_orders_what_is_popular(shop_stages: Stages, shop_fallbacks: Stages) -> None:
    graph = degrading(shop_stages, shop_fallbacks, {"retrieval": unavailable})
    outcome = await graph.recommend(CALLS[3])
    scores = outcome.batch.scores_BK[0, outcome.batch.codes_BK[0] != UNKNOWN]
    assert outcome.degraded == ("retrieval",)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) <= 0).all()
    assert outcome.batch.item_features.height
    graph.close()


async def test_a_stage_that_fails_again_and_again_is_asked_no_more(shop_stages: Stages, shop_fallbacks: Stages) -> None:
    asked = 0

    async def failing(_: Batch) -> Batch:
        nonlocal asked
        asked += 1
        raise StageUnavailableError("stage does not answer")

    graph = degrading(shop_stages, shop_fallbacks, {"ranking": failing}, BreakerConfig(failures=3, open_s=3600))
    for _ in range(6):
        assert (await graph.recommend(CALLS[0])).degraded == ("ranking",)
    assert asked == 3
    assert graph.circuits == {"explain": "closed", "ranking": "open"}
    graph.close()


async def test_a_stage_that_is_being_started_has_not_failed(shop_stages: Stages, shop_fallbacks: Stages) -> None:
    warm = False

    async def starting(batch: Batch) -> Batch:
        if not warm:
            raise StageColdError("no replica yet")
        return shop_stages["ranking"].run(batch)

    graph = degrading(shop_stages, shop_fallbacks, {"ranking": starting}, BreakerConfig(failures=3, open_s=3600))
    for _ in range(6):
        assert (await graph.recommend(CALLS[0])).degraded == ("ranking",)
    warm = True
    assert (await graph.recommend(CALLS[0])).degraded == ()
    graph.close()


async def test_no_more_requests_wait_for_sentences_than_may(shop_stages: Stages) -> None:
    """The others get their answer at once, without."""
    written = asyncio.Event()

    async def writing(batch: Batch) -> Batch:
        await written.wait()
        return dataclasses.replace(batch, explanations=({},) * len(batch))

    graph = graph_of(GraphConfig(explain_waiting=2, explain_timeout_s=60), shop_stages, {"explain": writing})
    first = [asyncio.ensure_future(graph.recommend(Call(str(n), "user 1", 5, explain=True))) for n in range(2)]
    await asyncio.sleep(0)
    await graph.recommend(CALLS[0])
    assert (await graph.recommend(Call("c", "user 1", 5, explain=True))).degraded == ("explain",)
    written.set()
    assert [each.degraded for each in await asyncio.gather(*first)] == [(), ()]
    assert (await graph.recommend(Call("d", "user 1", 5, explain=True))).degraded == ()
    graph.close()


async def test_who_is_in_a_hurry_costs_the_patient_nothing(shop_stages: Stages, shop_fallbacks: Stages) -> None:
    """Both wait at the same moment; a remote stage is told how long its caller waits, and cannot answer one of them."""
    budgets: list[float] = []

    async def slow_ranking(batch: Batch) -> Batch:
        budgets.append(batch.budget_s)
        return await never(batch) if batch.budget_s < 1 else shop_stages["ranking"].run(batch)

    graph = degrading(shop_stages, shop_fallbacks, {"ranking": slow_ranking})
    hurried, patient = await asyncio.gather(
        graph.recommend(Call("a", "user 1", 5, budget_s=30)), graph.recommend(Call("b", "user 1", 5, budget_s=60_000))
    )
    assert (hurried.degraded, patient.degraded) == (("ranking",), ())
    assert 0 < budgets[0] < 30 * 0.004 < budgets[1] < 60_000 * 0.004
    graph.close()


async def test_a_request_that_cannot_even_begin_in_time_fails(shop_stages: Stages) -> None:
    opened = threading.Event()

    class Stuck:
        def run(self, batch: Batch) -> Batch:
            assert opened.wait(30)
            return batch

    graph = graph_of(GraphConfig(), {**shop_stages, "features": Stuck()}, {})
    with pytest.raises(TooLateError, match=r"within the request's 0\.05 s"):
        await graph.recommend(Call("a", "user 1", 5, budget_s=0.05))
    opened.set()
    graph.close()


def test_an_in_process_stage_is_skipped_when_less_time_is_left_than_it_takes(
    shop_stages: Stages, shop_fallbacks: Stages
) -> None:
    class Slow:
        def run(self, batch: Batch) -> Batch:
            time.sleep(0.05)
            return shop_stages["ranking"].run(batch)

    before = run_stages([(name, shop_stages[name]) for name in RANKED[:3]], Batch((CALLS[3],), NOW))
    step = InProcess([("ranking", Slow())], {"ranking": shop_fallbacks["ranking"]}, 1)

    async def degraded_with(left_s: float) -> tuple[str, ...]:
        return (await step(before, time.monotonic() + left_s)).degraded

    assert asyncio.run(degraded_with(60)) == ()
    skipped = [asyncio.run(degraded_with(0.002)) for _ in range(2)]
    assert skipped == [("ranking",)] * 2
    assert asyncio.run(degraded_with(60)) == ()
    step.close()
