"""An item that comes to the data set is recommended by the variant that serves: no training, no restart."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset, write_dataset
from data.quality.validation import polars_schema
from data.schema import QUARANTINE
from serve.config import AppConfig
from serve.decisions import DecisionLog, read_decisions
from serve.graph import Graph, GraphConfig, StageName
from serve.loading import Parts, Trained
from serve.new_items import ItemsOnDisk, NewItems
from serve.schemas import RecommendRequest, RecommendResponse
from serve.service import Place, Service
from serve.takeover import Live
from tests.serve.conftest import no_language_model, published
from train.models.retrieval import RetrievalModel

NEW = "new / item"
CONFIG = AppConfig(dataset="shop", graph=GraphConfig(budget_s=30))


def added(home: Path, shop: Dataset, *items: tuple[str, str | None, list[str]]) -> Dataset:
    """A further version of the data set in `home`, with these items as well."""
    rows = pl.DataFrame(items, schema=shop.items().schema, orient="row")
    return write_dataset(
        home,
        "shop",
        events=shop.events().drop("split"),
        items=pl.concat([rows, shop.items()]),
        users=shop.users(),
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )


@pytest.fixture
def own(champion: dict[str, str], settings: Settings, shop: Dataset, tmp_path: Path) -> Settings:  # noqa: ARG001
    """A home with the data set as the champion was trained on it."""
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    published(shop, tmp_path).close()
    return Settings(home=tmp_path, mlflow_tracking_uri=settings.tracking_uri)


MakeService = Callable[[str], Service]


@pytest.fixture
def decisions(tmp_path: Path) -> DecisionLog:
    return DecisionLog(tmp_path / "decisions", "replica-1")


@pytest.fixture
def make_service(own: Settings, decisions: DecisionLog) -> MakeService:
    """A service as a gateway's replica makes it, without a language model."""
    trained = Trained(own, CONFIG)

    def make(variant: str) -> Service:
        parts = Parts(own, CONFIG, variant, trained=trained)
        names: list[StageName] = [name for name in CONFIG.graph.in_process() if name != "explain"]
        return Service(
            place=Place("shop", "r"),
            variant=parts.variant,
            graph=Graph(
                CONFIG.graph,
                {name: parts.stage(name) for name in names},
                {"explain": no_language_model},
                parts.fallbacks(),
            ),
            store=parts.store,
            decisions=decisions,
        )

    return make


@pytest.mark.anyio
async def test_it_is_recommended_without_a_restart_and_no_answer_is_in_between(
    own: Settings, shop: Dataset, make_service: MakeService, decisions: DecisionLog
) -> None:
    """Under load all the while: every answer is of the catalogue before or of the one after, and none fails."""
    live = Live(make_service("variant-a"), decisions)
    trained = Trained(own, CONFIG)
    asked = RecommendRequest(user_id="nobody yet", count=3, allow_items=(NEW, "item-1", "item-39"))
    answers: list[RecommendResponse] = []

    async def ask() -> list[str]:
        with live.serving() as service:
            answer = await service.recommend(asked)
            in_old, in_new = len(shop.items()), len(shop.items()) + 1
            assert service.models().items == (in_new if NEW in _ids(answer) else in_old)
        assert answer.degraded == ()
        answers.append(answer)
        return _ids(answer)

    async def prepare(variant: str) -> Service:
        return await asyncio.to_thread(make_service, variant)

    def has_grown(service: Service) -> bool:
        return Parts(own, CONFIG, service.variant, trained=trained).edition != service.edition

    before = await ask()
    assert set(before) == {"item-1", "item-39"}
    async with live.following(lambda: "variant-a", prepare, poll_s=0.02, has_grown=has_grown):
        for _ in range(5):
            assert await ask() == before
        added(own.home, shop, (NEW, "Thing thing", ["colour=red", "size=1"]))
        async with asyncio.timeout(120):
            while NEW not in await ask():
                pass
        for _ in range(20):
            assert set(await ask()) == {NEW, "item-1", "item-39"}
    old, new = ([answer for answer in answers if (NEW in _ids(answer)) == is_new] for is_new in (False, True))
    assert old
    assert new
    assert {answer.variant for answer in answers} == {"variant-a"}

    with live.serving() as service:
        unrestricted = await service.recommend(RecommendRequest(user_id="user 3", count=100))
        brought = await service.recommend(RecommendRequest(user_id="who", count=3, recent_items=(NEW,)))
        similar = service.similar(NEW, 3)
        served = service.models()
        health = await service.health()
    assert NEW in _ids(unrestricted)
    assert NEW not in _ids(brought)
    assert (similar.title, len(similar.items)) == ("Thing thing", 3)
    assert (served.items, served.new_items, health.status) == (len(shop.items()) + 1, 1, "ok")
    await live.close()
    digests = {each.decision_id: each.new_items for each in read_decisions(own.home / "decisions")}
    assert {digests[answer.decision_id] for answer in old} == {""}
    (digest,) = {digests[answer.decision_id] for answer in new}
    assert digest == digests[similar.decision_id] != ""


def _ids(answer: RecommendResponse) -> list[str]:
    return [item.item_id for item in answer.items]


def test_the_models_know_it_by_its_content_and_everything_else_as_before(own: Settings, shop: Dataset) -> None:
    """It lies where an item lies that has the same content and no event; the session's last item has none."""
    twin = shop.items().row(len(shop.items()) - 1, named=True)
    before = Parts(own, CONFIG, "variant-a").variant
    added(own.home, shop, (NEW, twin["title"], twin["attributes"]))
    after = Parts(own, CONFIG, "variant-a").variant
    assert len(after.catalogue) == len(before.catalogue) + 1
    code, twins = after.catalogue.code(NEW), after.catalogue.code(twin["item_id"])
    assert code == len(after.catalogue)
    directions = after.directions(pl.Series([code, twins, 1]).to_numpy())
    assert directions[0] == pytest.approx(directions[1], abs=1e-6)
    assert (directions[1:] == before.directions(pl.Series([twins, 1]).to_numpy())).all()
    assert (after.catalogue.title(code), after.catalogue.attributes(code)) == (twin["title"], twin["attributes"])
    assert before.catalogue.code(NEW) == 0


def test_new_is_what_the_model_does_not_name_and_can_read_something_of(
    shop: Dataset, shop_retrieval: RetrievalModel
) -> None:
    vocabulary = shop_retrieval.vocabulary
    rows = [("b", None, ["size=0"]), ("a", "thing", []), ("c", "unheard", ["colour=infrared"]), ("item-1", "x", [])]
    items = pl.DataFrame(rows, schema=shop.items().schema, orient="row")
    found = NewItems.among(items, vocabulary)
    assert found.table["item_id"].to_list() == ["a", "b"]
    assert NewItems.among(items.reverse(), vocabulary).digest == found.digest
    retitled = NewItems.among(items.with_columns(title=pl.lit("thing")), vocabulary)
    assert retitled.table["item_id"].to_list() == ["a", "b", "c"]
    assert retitled.digest != found.digest
    assert NewItems.among(shop.items(), vocabulary).digest == ""


def test_a_replica_finds_the_items_that_it_is_asked_about(
    own: Settings, shop: Dataset, shop_retrieval: RetrievalModel
) -> None:
    """Those of the version before, too: a gateway may not have taken up the newest yet."""
    disk, vocabulary = ItemsOnDisk(own.home, "shop"), shop_retrieval.vocabulary
    assert disk.new_to(vocabulary).digest == ""
    one = added(own.home, shop, ("one", "Thing", []))
    first = disk.new_to(vocabulary)
    added(own.home, one, ("two", "Thing", []))
    second = disk.new_to(vocabulary)
    assert [each.table["item_id"].to_list() for each in (first, second)] == [["one"], ["one", "two"]]
    for known in (first, second):
        assert disk.of_digest(known.digest, vocabulary).table.equals(known.table)
        parts = Parts(own, CONFIG, "variant-a", new_items=known.digest)
        assert parts.edition.new_items == known.digest
        assert len(parts.variant.catalogue) == len(shop.items()) + known.table.height
    assert len(Parts(own, CONFIG, "variant-a", new_items="").variant.catalogue) == len(shop.items())
    with pytest.raises(TowerlineError, match="has the new items 0123 any more"):
        disk.of_digest("0123", vocabulary)
    assert ItemsOnDisk(own.home / "elsewhere", "shop").new_to(vocabulary).digest == ""
