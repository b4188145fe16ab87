"""Promotion, a broken champion and rollback while a real Ray Serve answers under load, with a stage of its own.

Not one request fails, no answer is made of two variants, and nothing is restarted.
"""

import copy
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import polars as pl
import pytest
import torch

from cluster.settings import Settings
from data.dataset import Dataset
from serve.batch import Batch, Call
from serve.config import AppConfig, Replicas
from serve.graph import RANKED, GraphConfig
from serve.loading import Parts
from serve.session import running
from serve.steps import run_stages
from tests.ports import free_port
from tests.serve.conftest import USERS, registered
from tests.serve.test_new_items import NEW, added
from tests.waiting import wait_until
from train.ledger import Change, append, read_ledger
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.promotion import promote, roll_back
from train.registry import find_pair

pytestmark = pytest.mark.cluster

CLIENTS = 4
COUNT = 3
Answers = list[dict[str, Any]]


@pytest.fixture
def own(tmp_path: Path, shop: Dataset) -> Settings:
    """A home of its own with the data set, on a port of its own."""
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    return Settings(home=tmp_path, serve_port=free_port())


@pytest.fixture
def variants(own: Settings, shop: Dataset, shop_retrieval: RetrievalModel, shop_ranking: RankingModel) -> None:
    """`one`, the champion; `two`, of other weights and titles; `broken`, whose artifact is to go."""
    retrieval, ranking = copy.deepcopy(shop_retrieval), copy.deepcopy(shop_ranking)
    torch.manual_seed(9)
    for network in (retrieval.network, ranking.network):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    renamed = shop.items().with_columns(pl.col("title") + " (two)")
    registered(own, shop_retrieval, shop_ranking, shop.items(), "one", promoted=True)
    registered(own, retrieval, ranking, renamed, "two")
    registered(own, shop_retrieval, shop_ranking, shop.items(), "broken")


Expected = dict[tuple[str, str], list[tuple[str, float]]]


def expected(own: Settings, config: AppConfig) -> Expected:
    """Items and scores for each variant and user, by the stages in one process."""
    found: Expected = {}
    calls = tuple(Call("d", user, COUNT) for user in USERS)
    for variant in ("one", "two"):
        parts = Parts(own, config, variant, new_items="")
        batch = run_stages([(name, parts.stage(name)) for name in RANKED], Batch(calls, datetime.now(UTC)))
        for row, user in enumerate(USERS):
            codes, scores = batch.codes_BK[row, :COUNT].tolist(), batch.scores_BK[row].tolist()
            found[variant, user] = [
                (parts.variant.catalogue.item_id(code), score) for code, score in zip(codes, scores, strict=False)
            ]
    return found


@contextmanager
def load(url: str) -> Iterator[Answers]:
    """Clients that ask without a pause until the block ends; every answer must be 200."""
    answers: Answers = []
    stop = threading.Event()

    def ask(client_number: int) -> None:
        with httpx.Client(base_url=url, timeout=300) as client:
            request = client_number
            while not stop.is_set():
                response = client.post("/v1/recommend", json={"user_id": USERS[request % len(USERS)], "count": COUNT})
                assert response.status_code == 200, response.text
                answers.append(response.json())
                request += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
        for client in clients:
            client.result()


@pytest.mark.usefixtures("variants", "ray_session")
def test_the_champion_moves_and_no_request_notices(own: Settings, shop: Dataset) -> None:
    """At last an item comes to the data set; both gateways and both replicas of the ranking take it up."""
    config = AppConfig(
        dataset="shop",
        champion_poll_s=0.2,
        graph=GraphConfig(ranking="remote"),
        gateway_replicas=Replicas(min=2, max=2, num_cpus=0.1),
        stage_replicas=Replicas(min=2, max=2, num_cpus=0.1),
        explain_replicas=Replicas(num_cpus=0.1),
    )
    uri = own.tracking_uri

    with running(own, config) as url, load(url) as answers:

        def answered_by(variant: str, count: int = 60) -> bool:
            last = answers[-count:]
            return len(last) == count and {answer["variant"] for answer in last} == {variant}

        def health() -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{url}/healthz", timeout=300).json()
            return found

        wait_until(lambda: answered_by("one"))
        promote(uri, "shop", "two", force="test")
        wait_until(lambda: answered_by("two"))
        make_broken_champion(uri)
        wait_until(lambda: health()["refused"] is not None)
        refused = health()
        assert (refused["variant"], refused["champion"]) == ("two", "broken")
        assert answered_by("two")
        roll_back(uri, "shop", "one")
        wait_until(lambda: answered_by("one"))
        wait_until(lambda: health()["refused"] is None)
        whole = len(answers)
        added(own.home, shop, (NEW, "Thing", ["colour=red"]))
        question = {"user_id": USERS[3], "count": COUNT, "allow_items": [NEW, "item-1"]}
        with httpx.Client(base_url=url, timeout=300) as client:
            wait_until(lambda: all(_finds(client, question, NEW) for _ in range(20)))
        assert {answer["variant"] for answer in answers[whole:]} <= {"one"}
    require_whole(answers[:whole], expected(own, config))


def _finds(client: httpx.Client, question: dict[str, Any], item: str) -> bool:
    answer = client.post("/v1/recommend", json=question).raise_for_status().json()
    assert answer["degraded"] == []
    return item in [each["item_id"] for each in answer["items"]]


def make_broken_champion(uri: str) -> None:
    """An entry that `promote` would not write: the artifact is lost already."""
    pair = find_pair(uri, "shop", "broken")
    shutil.rmtree(urlsplit(str(pair.models["ranker"].source)).path)
    ledger = read_ledger(uri, "shop")
    assert ledger.last is not None
    change = ledger.last.model_dump(exclude={"number", "when", "in_effect"})
    change |= {"id": "lost", "follows": ledger.last.number, "from_variant": "two", "to_variant": "broken"}
    append(uri, "shop", Change.model_validate(change), pair.models["two-tower"])


def require_whole(answers: Answers, expected: Expected) -> None:
    """Versions, titles, items and scores of an answer are of the variant that it names, and differ by variant."""
    assert {answer["variant"] for answer in answers} == {"one", "two"}
    assert all(abs(expected["one", user][0][1] - expected["two", user][0][1]) > 0.01 for user in USERS)
    for answer in answers:
        is_two = answer["variant"] == "two"
        assert answer["models"] == {"two-tower": "2" if is_two else "1", "ranker": "2" if is_two else "1"}
        assert answer["degraded"] == []
        items, scores = zip(*expected[answer["variant"], answer["user_id"]], strict=True)
        assert tuple(item["item_id"] for item in answer["items"]) == items
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-3)
        for item in answer["items"]:
            assert item["title"] is None or item["title"].endswith(" (two)") == is_two
