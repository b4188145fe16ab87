"""The same answer wherever a stage runs; one call per micro-batch; nobody waits for somebody else's explanation."""

import asyncio
import dataclasses
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.assets import SMOLLM2, fetch
from serve.batch import Batch, Call, Stage
from serve.breaker import BreakerConfig
from serve.graph import RANKED, Graph, GraphConfig, Outcome, StageName, TooLateError
from serve.stages.diversity import Diversity
from serve.stages.explain import Explain, ExplainConfig
from serve.steps import InProcess, RemoteCall, StageUnavailableError, run_stages
from serve.variant import Variant
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN

pytestmark = pytest.mark.anyio

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CALLS = [Call(f"d{number}", f"user {number}", 5, ("item-1",) * (number % 2)) for number in range(12)]
Stages = dict[StageName, Stage]
MOVABLE = [name for name in RANKED if name != "limit"]


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


async def never(batch: Batch) -> Batch:
    await asyncio.Event().wait()
    return batch


def degrading(
    stages: Stages, fallbacks: Stages, remote: dict[StageName, RemoteCall], breaker: BreakerConfig | None = None
) -> Graph:
    """A graph that gives a remote stage a small part of the time that there is."""
    config = GraphConfig(budget_s=30, stage_share=0.004, breaker=breaker or BreakerConfig())
    config = config.model_copy(update=dict.fromkeys(remote, "remote"))
    return Graph(config, stages, {"explain": unavailable} | remote, fallbacks, lambda: NOW)


def graph_of(config: GraphConfig, stages: Stages, remote: dict[StageName, RemoteCall]) -> Graph:
    return Graph(config, stages, {"explain": unavailable} | remote, clock=lambda: NOW)


@pytest.fixture(scope="module")
def explain() -> Iterator[Explain]:
    return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, ExplainConfig(threads=1, parallel=2))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    remote=st.sets(st.sampled_from(MOVABLE)),
    places=st.lists(st.integers(0, len(CALLS) - 1), min_size=1, max_size=8, unique=True),
)
def test_the_answer_is_the_same_wherever_a_stage_runs(
    shop_stages: Stages, shop_variant: Variant, remote: set[StageName], places: list[int]
) -> None:
    """Bit for bit for the same requests at once, with one call per micro-batch and remote stage; and nearly so alone.

    Diversity is on, so that every stage has something to do.
    """
    stages = {**shop_stages, "diversity": Diversity(shop_variant, 0.5)}
    calls = [CALLS[place] for place in places]

    async def answers(asked: dict[StageName, Remote], *together: Call) -> list[Outcome]:
        graph = graph_of(GraphConfig.model_validate(dict.fromkeys(asked, "remote")), stages, dict(asked))
        found = await asyncio.gather(*map(graph.recommend, together))
        graph.close()
        return found

    asked = {name: Remote(stages[name]) for name in remote}
    expected, found = asyncio.run(answers({}, *calls)), asyncio.run(answers(asked, *calls))
    (alone,) = asyncio.run(answers({name: Remote(stages[name]) for name in remote}, calls[0]))
    for mine, other in zip(expected, found, strict=True):
        assert mine.batch.codes_BK.tolist() == other.batch.codes_BK.tolist()
        assert mine.batch.scores_BK.tobytes() == other.batch.scores_BK.tobytes()
        assert mine.degraded == other.degraded == ()
    np.testing.assert_allclose(alone.batch.scores_BK, found[0].batch.scores_BK, rtol=0, atol=1e-5)
    assert alone.batch.codes_BK.tolist() == found[0].batch.codes_BK.tolist()
    assert [call.calls for call in asked.values()] == [[len(calls)]] * len(remote)
    assert set(found[0].timings_ms) == {"queue", *RANKED, "total"}


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
    config = GraphConfig(explain="in_process", explained_items=2, explain_timeout_s=300)
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
    written = asyncio.Event()

    async def writing(_: Batch) -> Batch:
        await written.wait()
        raise StageUnavailableError("it was all for nothing")

    graph = graph_of(GraphConfig(explain_timeout_s=60), shop_stages, {"explain": writing})
    explained = asyncio.ensure_future(graph.recommend(Call("a", "user 1", 5, explain=True)))
    for number in range(5):
        await graph.recommend(CALLS[number])
    assert not explained.done()
    written.set()
    assert (await explained).degraded == ("explain",)
    graph.close()


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


def test_the_config_says_what_is_where() -> None:
    config = GraphConfig(ranking="remote")
    assert config.remote() == ("ranking", "explain")
    assert config.in_process() == ("features", "retrieval", "filter", "diversity", "limit", "facts")
    with pytest.raises(ValueError, match="in_process"):
        GraphConfig.model_validate({"ranking": "elsewhere"})
    with pytest.raises(ValueError, match="rankign"):
        GraphConfig.model_validate({"rankign": "remote"})
