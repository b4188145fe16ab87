"""A small shop with odd names and models with random weights: everything real, nothing trained."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import polars as pl
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from cluster.settings import Settings
from data.dataset import Dataset, write_dataset
from data.events import with_event_ids
from data.features import feature_fingerprints, views, with_sequence
from data.online.store import OnlineStore, open_online_store
from data.quality.validation import polars_schema
from data.schema import QUARANTINE
from serve.batch import Batch, Stage
from serve.decisions import DecisionLog
from serve.graph import Graph, GraphConfig, StageName
from serve.http import build_http
from serve.metrics import Metrics
from serve.service import Place, Service
from serve.stages.diversity import Diversity
from serve.stages.facts import GatherFacts
from serve.stages.fallbacks import Popularity, RetrievalOrder, Unchanged
from serve.stages.features import Features
from serve.stages.filter import Filter, Limit
from serve.stages.ranking import Ranking
from serve.stages.retrieval import Retrieval
from serve.steps import StageUnavailableError
from serve.takeover import Live
from serve.variant import Variant
from tests.ports import free_port
from train.card import KINDS, ModelCard
from train.evaluation import Evaluation
from train.models.candidate_features import feature_names
from train.models.covisitation import fit_covisitation
from train.models.ensemble import Ensemble, EnsembleConfig
from train.models.ranker import Ranker, RankerConfig
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.models.two_tower import TwoTower, TwoTowerConfig
from train.promotion import promote
from train.registry import find_pair, register_ranking, register_retrieval
from train.tracking import TrackingTarget, start_run
from train.training_rows import TrainingRows
from train.vocabulary import Vocabulary

HISTORY = 8
ENSEMBLE = EnsembleConfig.model_validate(
    {
        "sources": [
            {"kind": "popularity", "half_life_days": 2},
            {"kind": "item_item"},
            {"kind": "ease"},
            {"kind": "ials"},
        ],
        "candidates": {"blend": "reciprocal_rank", "depth": 30},
    }
)
NO_VALUES = pl.DataFrame(schema={"user_id": pl.String, "protocol_hash": pl.String, "model": pl.String})
START = datetime(2024, 5, 1, tzinfo=UTC)
ODD_ITEMS = (
    "a b",
    "a/b/similar",
    "/similar",
    'say "hi"',
    "100%",
    "%2F",
    "千と千尋",
    "đ?x=1&y#z",
    "..",
    "it's; DROP TABLE--",
    "nul\x00inside",
    "line\nbreak",
    "🦄",
)
ITEMS = (*ODD_ITEMS, *(f"item-{number}" for number in range(40)))
USERS = tuple(f"user {number}" for number in range(12))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shop_events() -> pl.DataFrame:
    """About 240 events; a user's events have items and values that vary, and every third shares its time."""
    rows = []
    for number, user in enumerate(USERS):
        for step in range(10 + number * 2):
            item = ITEMS[(number * 7 + step * 11) % len(ITEMS)]
            at = START + timedelta(hours=number + step - (step % 3 == 2))
            rows.append((user, item, "view" if step % 2 else "buy", float(1 + (number + step) % 5), at))
    schema = ["user_id", "item_id", "event_type", "value", "event_time"]
    events = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col("value").cast(pl.Float32),
        pl.col("event_time").cast(pl.Datetime("us", "UTC")),
        pl.col("event_time").cast(pl.Datetime("us", "UTC")).alias("ingest_time"),
        pl.lit(None, dtype=pl.String).alias("decision_id"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("source_row"),
    )
    return with_event_ids(events)


@pytest.fixture(scope="session")
def shop_items() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": ITEMS,
            "title": [f"Thing {place}" if place % 5 else None for place in range(len(ITEMS))],
            "attributes": [
                [f"colour={'red' if place % 2 else 'blue'}", f"size={place % 3}"] for place in range(len(ITEMS))
            ],
        },
        schema={"item_id": pl.String, "title": pl.String, "attributes": pl.List(pl.String)},
    )


@pytest.fixture(scope="session")
def shop_users() -> pl.DataFrame:
    return pl.DataFrame(
        {"user_id": USERS[:6], "attributes": [[f"age={number}"] for number in range(6)]},
        schema={"user_id": pl.String, "attributes": pl.List(pl.String)},
    )


@pytest.fixture(scope="session")
def shop_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `TOWERLINE_HOME` with the data set `shop`."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def shop(shop_home: Path, shop_events: pl.DataFrame, shop_items: pl.DataFrame, shop_users: pl.DataFrame) -> Dataset:
    return write_dataset(
        shop_home,
        "shop",
        events=shop_events,
        items=shop_items,
        users=shop_users,
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )


@pytest.fixture(scope="session")
def shop_retrieval(shop: Dataset) -> RetrievalModel:
    """The two-tower as it is before training, with every item but the last counted as seen, and fitted sources."""
    vocabulary = Vocabulary.build(shop.events(), shop.items(), shop.users(), shop.events()["value"])
    torch.manual_seed(1)
    config = TwoTowerConfig(embedding_dim=16, history_length=HISTORY)
    network = TwoTower(config, vocabulary, item_attribute_codes(shop.items(), vocabulary))
    network.item_frequency_I.copy_(torch.arange(vocabulary.num_items + 1).float().flip(0))
    events = with_sequence(shop.events())
    ensemble = Ensemble.fit(ENSEMBLE, events, vocabulary)
    return RetrievalModel(config, vocabulary, network.state_dict(), fit_covisitation(events, vocabulary), ensemble)


@pytest.fixture(scope="session")
def shop_ranking(shop: Dataset, shop_retrieval: RetrievalModel) -> RankingModel:
    """A ranker whose random weights reorder what retrieval gives it."""
    torch.manual_seed(2)
    vocabulary = shop_retrieval.vocabulary
    width = len(feature_names(ENSEMBLE.score_names))
    network = Ranker(RankerConfig(), vocabulary, item_attribute_codes(shop.items(), vocabulary), width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return RankingModel(RankerConfig(), vocabulary, network.state_dict())


@pytest.fixture(scope="session")
def shop_variant(shop: Dataset, shop_retrieval: RetrievalModel, shop_ranking: RankingModel) -> Variant:
    return Variant(
        name="champion",
        versions={"two-tower": "1", "ranker": "1"},
        history_length=HISTORY,
        retrieval=shop_retrieval,
        ranking=shop_ranking,
        items=shop.items(),
        cards={kind: card(kind, HISTORY, "champion") for kind in KINDS},
    )


@pytest.fixture(scope="session")
def shop_store(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OnlineStore:
    """A store to read; tests that write make their own."""
    return published(shop, tmp_path_factory.mktemp("store"))


def published(shop: Dataset, home: Path) -> OnlineStore:
    """A store of its own that the shop is published to."""
    store = open_online_store(Settings(home=home), "shop", views(HISTORY))
    store.publish(shop)
    return store


@pytest.fixture
def own_store(shop: Dataset, tmp_path: Path) -> OnlineStore:
    """A store to write to."""
    return published(shop, tmp_path)


@pytest.fixture(params=ODD_ITEMS)
def odd_item(request: pytest.FixtureRequest) -> str:
    """Each item id that would break a careless URL, query or file."""
    item: str = request.param
    return item


@pytest.fixture(scope="session")
def make_stages(shop_variant: Variant) -> Callable[[OnlineStore], dict[StageName, Stage]]:
    """All stages but the language model's, over a store."""

    def make(store: OnlineStore) -> dict[StageName, Stage]:
        config = GraphConfig()
        return {
            "features": Features(shop_variant.catalogue, store),
            "retrieval": Retrieval(shop_variant, config.candidates),
            "filter": Filter(shop_variant.catalogue, config.candidates),
            "ranking": Ranking(shop_variant, store),
            "diversity": Diversity(shop_variant, config.diversity_lambda),
            "limit": Limit(shop_variant.catalogue),
            "facts": GatherFacts(shop_variant.catalogue, config.explained_items),
        }

    return make


@pytest.fixture(scope="session")
def shop_stages(
    make_stages: Callable[[OnlineStore], dict[StageName, Stage]], shop_store: OnlineStore
) -> dict[StageName, Stage]:
    """The stages over the store that nobody writes to."""
    return make_stages(shop_store)


@pytest.fixture(scope="session")
def shop_fallbacks(shop_variant: Variant) -> dict[StageName, Stage]:
    """What takes the place of a stage that is skipped."""
    return {
        "retrieval": Popularity(shop_variant, GraphConfig().candidates),
        "ranking": RetrievalOrder(shop_variant.catalogue),
        "diversity": Unchanged(),
    }


@pytest.fixture(scope="session")
def get_as_it_is() -> Callable[[str, str], dict[str, Any]]:
    """GET with a client that sends the path untouched; httpx, as a browser, takes `..` for the folder above."""

    def get(base_url: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(base_url).netloc)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    return get


def card(kind: Any, history_length: int, variant: str = "variant-a") -> ModelCard:
    return ModelCard(
        kind=kind,
        variant=variant,
        dataset="shop",
        data_version="0",
        trained_on=TrainingRows(),
        config={},
        scaling={},
        history_length=history_length,
        feature_fingerprints=feature_fingerprints(history_length),
        evaluation=Evaluation(protocol="none", protocol_hash="none", users=0, figures={}),
        curve=[],
        best_epoch=0,
        git_commit="0",
        versions={},
    )


@pytest.fixture(scope="session")
def settings(shop_home: Path) -> Settings:
    return Settings(home=shop_home, serve_port=free_port())


@pytest.fixture(scope="session")
def champion(
    settings: Settings, shop: Dataset, shop_retrieval: RetrievalModel, shop_ranking: RankingModel
) -> dict[str, str]:
    """The models with random weights in an MLflow registry."""
    return registered(settings, shop_retrieval, shop_ranking, shop.items(), "variant-a", promoted=True)


def registered(
    settings: Settings,
    retrieval: RetrievalModel,
    ranking: RankingModel,
    items: pl.DataFrame,
    variant: str,
    *,
    promoted: bool = False,
) -> dict[str, str]:
    """A pair in the registry, the champion if `promoted`; its versions."""
    target = TrackingTarget(tracking_uri=settings.tracking_uri, experiment="serve", run_name="random")
    length = retrieval.config.history_length
    with start_run(target) as run:
        register_retrieval(run, retrieval, card("two-tower", length, variant), items)
        config = retrieval.ensemble.config.model_dump(mode="json")
        of_ranker = card("ranker", length, variant).model_copy(update={"config": config})
        register_ranking(run, ranking, of_ranker, NO_VALUES)
    if promoted:
        promote(settings.tracking_uri, "shop", variant, force="the models of a test are not measured")
    return {str(kind): version for kind, version in find_pair(settings.tracking_uri, "shop", variant).versions.items()}


MakeStages = Callable[[OnlineStore], dict[StageName, Stage]]


async def no_language_model(_: Batch) -> Batch:
    """What a caller sees while the remote stage is being started."""
    raise StageUnavailableError("stage 'explain' does not answer")


@pytest.fixture(scope="module")
def decisions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decisions")


@pytest.fixture(scope="module")
def store(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OnlineStore:
    return published(shop, tmp_path_factory.mktemp("store"))


Answering = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="session")
def answering(shop_variant: Variant, make_stages: MakeStages) -> Answering:
    """`with answering(store, folder) as client`: an endpoint over HTTP without Ray; its log is complete afterwards.

    With a moment `at`, its clock stands still then.
    """

    @contextmanager
    def answer(store: OnlineStore, decisions_folder: Path, at: datetime | None = None) -> Iterator[httpx.Client]:
        def clock() -> datetime:
            return at or datetime.now(UTC)

        decisions, metrics, config = DecisionLog(decisions_folder, "replica-1"), Metrics(), GraphConfig(budget_s=30)
        service = Service(
            place=Place("shop", "replica-1"),
            variant=shop_variant,
            graph=Graph(config, make_stages(store), {"explain": no_language_model}, clock=clock, metrics=metrics),
            store=store,
            decisions=decisions,
            clock=clock,
        )
        live = Live(service, decisions, metrics=metrics)
        with listening(build_http(live)) as url, httpx.Client(base_url=url, timeout=300) as client:
            yield client

    return answer


@pytest.fixture(scope="module")
def client(answering: Answering, store: OnlineStore, decisions_folder: Path) -> Iterator[httpx.Client]:
    with answering(store, decisions_folder) as client:
        yield client


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """`app` on a free port, in a thread of this process, until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
