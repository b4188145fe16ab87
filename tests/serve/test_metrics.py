"""What is measured: the right numbers, under names that Prometheus' conventions allow, wherever they are collected."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from data.dataset import Dataset
from serve.metrics import DEFINITIONS, Metrics
from tests.serve.conftest import Answering, published
from tests.serve.test_http import ask

Values = dict[tuple[str, ...], float]


@pytest.fixture
def client(answering: Answering, shop: Dataset, tmp_path: Path) -> Iterator[httpx.Client]:
    """An endpoint of its own, that nobody has asked yet."""
    with answering(published(shop, tmp_path), tmp_path / "decisions") as client:
        yield client


def measured(client: httpx.Client) -> Values:
    """Name of a sample and the values of its labels, by the names of those → value."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return samples(response.text)


def samples(text: str) -> Values:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_names_follow_the_conventions() -> None:
    for each in DEFINITIONS:
        assert re.fullmatch(r"towerline_[a-z]+(_[a-z]+)*", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert each.kind != "histogram" or each.name.endswith(("_seconds", "_ratio"))
        assert list(each.buckets) == sorted(each.buckets)
        assert bool(each.buckets) == (each.kind == "histogram")


def test_requests_are_counted_by_endpoint_and_status(client: httpx.Client) -> None:
    for _ in range(3):
        ask(client, user_id="user 1")
    client.post("/v1/recommend", json={})
    client.get("/v1/items/no such item/similar")
    client.get("/v1/items/item-1/similar")
    client.get("/nowhere")
    client.post("/v1/feedback", content=b" " * (3 * 2**20))
    found = {key[1:]: value for key, value in measured(client).items() if key[0] == "towerline_requests_total"}
    similar = "/v1/items/{item_id}/similar"
    assert found == {
        ("/v1/recommend", "200"): 3,
        ("/v1/recommend", "422"): 1,
        (similar, "404"): 1,
        (similar, "200"): 1,
        ("other", "404"): 1,
        ("other", "413"): 1,
    }
    assert measured(client)["towerline_request_duration_seconds_count", "/v1/recommend"] == 4


def test_stages_batches_candidates_and_what_was_left_out(client: httpx.Client) -> None:
    before = measured(client)
    answer = ask(client, user_id="user 1", explain=True)
    ask(client, user_id="user 2")
    after = measured(client)

    def more(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    for stage in ("features", "retrieval", "filter", "ranking", "diversity", "limit"):
        assert more("towerline_stage_duration_seconds_count", stage) == 2
        assert more("towerline_stage_duration_seconds_sum", stage) > answer["timings_ms"][stage] / 1e3
    assert more("towerline_queue_duration_seconds_count") == 2
    assert more("towerline_batch_fill_ratio_sum") == pytest.approx(2 / 64)
    assert more("towerline_degraded_answers_total", "explain") == 1
    sources = {key[1] for key in after if key[0] == "towerline_candidates_total"}
    assert "two_tower" in sources
    assert len(sources) > 1
    assert all(more("towerline_candidates_total", source) > 0 for source in sources)


def test_the_models_that_answer_are_told_from_those_that_did() -> None:
    metrics = Metrics()
    metrics.serves("one", {"two-tower": "1", "ranker": "2"})
    metrics.serves("one", {"two-tower": "1", "ranker": "2"}, now=False)
    metrics.serves("two", {"two-tower": "3", "ranker": "4"})
    exposition = metrics.exposition()
    assert exposition is not None
    info = {key[1:]: value for key, value in samples(exposition.decode()).items() if key[0] == "towerline_model_info"}
    assert info == {
        ("two-tower", "one", "1"): 0,
        ("ranker", "one", "2"): 0,
        ("two-tower", "two", "3"): 1,
        ("ranker", "two", "4"): 1,
    }
