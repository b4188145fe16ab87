"""The same answer wherever a stage runs; one call per micro-batch; nobody waits for somebody else's explanation."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.assets import SMOLLM2, fetch
from serve.batch import Batch, Call
from serve.graph import RANKED, Graph, GraphConfig, Outcome, StageName
from serve.stages.diversity import Diversity
from serve.stages.explain import Explain, ExplainConfig
from serve.steps import StageUnavailableError
from serve.variant import Variant
from tests.serve.graphs import CALLS, NOW, Remote, Stages, graph_of

pytestmark = pytest.mark.anyio

MOVABLE = [name for name in RANKED if name != "limit"]


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


def test_the_config_says_what_is_where() -> None:
    config = GraphConfig(ranking="remote")
    assert config.remote() == ("ranking", "explain")
    assert config.in_process() == ("features", "retrieval", "filter", "diversity", "limit", "facts")
    with pytest.raises(ValueError, match="in_process"):
        GraphConfig.model_validate({"ranking": "elsewhere"})
    with pytest.raises(ValueError, match="rankign"):
        GraphConfig.model_validate({"rankign": "remote"})
