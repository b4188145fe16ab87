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
from cluster.errors import TowerlineError
from serve.batch import Batch, Call, Stage
from serve.breaker import BreakerConfig
from serve.graph import RANKED, Graph, GraphConfig, Outcome, StageName, TooLateError
from serve.stages.diversity import Diversity
from serve.stages.explain import Explain, ExplainConfig
from serve.stages.fallbacks import RankersOrder, Unchanged
from serve.stages.profile import GatherProfiles
from serve.steps import InProcess, RemoteCall, StageColdError, StageUnavailableError, run_stages
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


async def test_without_a_language_model_nobody_waits_for_one(shop_stages: Stages) -> None:
    config = GraphConfig(explain="off")
    assert config.remote() == ()
    assert "facts" not in config.in_process()
    graph = graph_of(config, shop_stages, {})
    outcome = await graph.recommend(Call("a", "user 1", 5, explain=True))
    assert outcome.degraded == ("explain",)
    assert len(outcome.batch.codes_BK[0]) >= 5
    graph.close()


def test_a_graph_that_has_all_the_time_in_the_world_is_the_same_but_for_where_its_stages_are() -> None:
    config = GraphConfig(ranking="remote", retrieval="remote", rerank="remote", candidates=50)
    here = config.here()
    assert here.remote() == ()
    assert here.in_process() == (*RANKED, "profile", "rerank")
    assert here.candidates == 50


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
