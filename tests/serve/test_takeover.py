"""A new champion takes over while requests are answered; a broken one does not, and that is said."""

import asyncio
import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset
from data.online.store import OnlineStore
from serve.batch import Batch, Stage
from serve.config import AppConfig
from serve.decisions import DecisionLog
from serve.graph import Graph, GraphConfig, StageName
from serve.loading import make_first
from serve.schemas import RecommendRequest
from serve.service import Place, Service
from serve.takeover import Champions, Live
from serve.variant import Variant
from tests.serve.conftest import registered
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.promotion import promote, roll_back

pytestmark = pytest.mark.anyio
REQUEST = RecommendRequest(user_id="user 1", count=3)
MakeService = Callable[..., Service]


class Gate:
    """A stage that holds batches back until it is opened."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.reached = threading.Event()
        self.opened = threading.Event()

    def run(self, batch: Batch) -> Batch:
        self.reached.set()
        assert self.opened.wait(300)
        return self._stage.run(batch)


@pytest.fixture
def decisions(tmp_path: Path) -> DecisionLog:
    return DecisionLog(tmp_path, "replica-1")


@pytest.fixture
def make_service(
    shop_variant: Variant, shop_store: OnlineStore, shop_stages: dict[StageName, Stage], decisions: DecisionLog
) -> MakeService:
    """A service of a variant with this name, with a stage in the place of the ranking if one is given."""

    def make(name: str, ranking: Stage | None = None) -> Service:
        variant = copy.copy(shop_variant)
        variant.name, variant.versions = name, {"two-tower": name, "ranker": name}
        stages = {**shop_stages, "ranking": ranking or shop_stages["ranking"]}
        graph = Graph(GraphConfig(explain="in_process"), {**stages, "explain": stages["facts"]}, {})
        return Service(place=Place("shop", "r"), variant=variant, graph=graph, store=shop_store, decisions=decisions)

    return make


async def test_a_request_is_answered_by_the_variant_that_it_began_with(
    make_service: MakeService, decisions: DecisionLog, shop_stages: dict[StageName, Stage]
) -> None:
    """The swap waits for nobody; the old service is closed after the last of its answers, not before."""
    gate = Gate(shop_stages["ranking"])
    live = Live(make_service("old", gate), decisions)

    async def ask() -> str:
        with live.serving() as service:
            return (await service.recommend(REQUEST)).variant

    async def prepare(name: str) -> Service:
        return make_service(name)

    early = asyncio.create_task(ask())
    await asyncio.to_thread(gate.reached.wait)
    await live.follow("new", prepare)
    assert await ask() == "new"
    assert not early.done()
    gate.opened.set()
    assert await early == "old"
    health = await live.health()
    assert (health.variant, health.champion, health.refused) == ("new", "new", None)
    assert health.models == {"two-tower": "new", "ranker": "new"}
    await live.close()


async def test_one_that_cannot_be_prepared_is_refused_and_tried_again(
    make_service: MakeService, decisions: DecisionLog, caplog: pytest.LogCaptureFixture
) -> None:
    live = Live(make_service("old"), decisions)
    broken, asked = True, 0

    async def prepare(name: str) -> Service:
        nonlocal asked
        asked += 1
        if broken:
            raise TowerlineError("version 2 of model 'shop-ranker': its artifact is missing")
        return make_service(name)

    await live.follow("new", prepare)
    health = await live.health()
    assert (health.variant, health.champion) == ("old", "new")
    assert health.refused == "version 2 of model 'shop-ranker': its artifact is missing"
    assert "variant new is refused, old goes on serving" in caplog.text
    broken = False
    await live.follow("new", prepare)
    health = await live.health()
    assert (health.variant, health.champion, health.refused, asked) == ("new", "new", None, 2)
    await live.close()


async def test_after_a_refusal_it_waits_longer_and_another_champion_ends_that(
    make_service: MakeService, decisions: DecisionLog
) -> None:
    live = Live(make_service("old"), decisions)
    asked: list[str] = []

    async def prepare(name: str) -> Service:
        asked.append(name)
        if name == "broken":
            raise RuntimeError("any error whatever")
        return make_service(name)

    for _ in range(3):
        await live.follow("broken", prepare, pause_s=3600)
    assert asked == ["broken"]
    await live.follow("old", prepare, pause_s=3600)
    health = await live.health()
    assert (health.variant, health.champion, health.refused) == ("old", "old", None)
    await live.follow("next", prepare, pause_s=3600)
    assert asked == ["broken", "next"]
    assert (await live.health()).variant == "next"
    await live.close()


async def test_it_looks_again_and_again_whatever_the_registry_says(
    make_service: MakeService, decisions: DecisionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """An address that does not answer for a while delays a takeover, no more."""
    live = Live(make_service("old"), decisions)
    answers = iter([ConnectionError("nobody listens"), "old"])

    def look() -> str:
        answer = next(answers, "new")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def prepare(name: str) -> Service:
        return make_service(name)

    async with live.following(look, prepare, poll_s=0.01):
        async with asyncio.timeout(300):
            while (await live.health()).variant != "new":
                await asyncio.sleep(0.01)
    assert "the registry cannot be asked for the champion" in caplog.text
    await live.close()


@pytest.fixture
def two_variants(tmp_path: Path, shop_retrieval: RetrievalModel, shop_ranking: RankingModel, shop: Dataset) -> Settings:
    """A registry of its own, in which `one` and then `two` became champion."""
    settings = Settings(home=tmp_path)
    for name in ("one", "two"):
        registered(settings, shop_retrieval, shop_ranking, shop.items(), name, promoted=True)
    return settings


def test_the_champion_is_seen_when_the_ledger_grows(two_variants: Settings) -> None:
    champions = Champions(two_variants, "shop")
    assert champions.look() == "two"
    roll_back(two_variants.tracking_uri, "shop")
    assert champions.look() == champions.look() == "one"
    promote(two_variants.tracking_uri, "shop", "two", force="test")
    assert champions.look() == "two"


def test_a_replica_begins_with_the_champion_or_the_one_before(
    two_variants: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig(dataset="shop")
    first = make_first(two_variants, config, str.upper)
    assert (first.champion, first.serving, first.made, first.refused) == ("two", "two", "TWO", None)

    def only_one(variant: str) -> str:
        if variant != "one":
            raise TowerlineError(f"{variant} is broken")
        return variant.upper()

    first = make_first(two_variants, config, only_one)
    assert (first.champion, first.serving, first.made, first.refused) == ("two", "one", "ONE", "two is broken")
    assert "variant one is served, not the champion two: two is broken" in caplog.text

    def none(variant: str) -> str:
        raise TowerlineError(f"{variant} is broken")

    with pytest.raises(TowerlineError, match="two is broken"):
        make_first(two_variants, config, none)
