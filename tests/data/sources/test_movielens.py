"""The real MovieLens-100K, as the pinned asset has it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.assets import MOVIELENS_100K, fetch
from data.ingest.ingestion import Ingested, ingest_movielens
from data.sources import movielens

NOW = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch(MOVIELENS_100K)


@pytest.fixture(scope="module")
def ingested(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    return ingest_movielens(tmp_path_factory.mktemp("home"), folder, NOW)


def test_every_rating_is_an_event(ingested: Ingested) -> None:
    manifest = ingested.dataset.manifest
    assert (ingested.rows_read, manifest.events, manifest.users, manifest.items) == (100_000, 100_000, 943, 1_682)
    assert ingested.quarantined == {}
    assert manifest.first_event_time == datetime(1997, 9, 20, 3, 5, 10, tzinfo=UTC)
    assert "ingest_time = event_time" in manifest.ingest_time_rule
    events = ingested.dataset.events()
    assert events["event_id"].n_unique() == 100_000
    assert events["event_time"].equals(events["ingest_time"])
    first = events.filter(user_id="196", item_id="242").row(0, named=True)
    assert (first["value"], first["event_type"], first["source_row"]) == (3.0, "rating", 2)
    assert first["event_time"] == datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)


def test_films_and_people_have_tokens(folder: Path) -> None:
    films = {row["item_id"]: row for row in movielens.read_items(folder).to_dicts()}
    assert films["1"]["title"] == "Toy Story"
    assert films["1"]["attributes"] == ["genre=Animation", "genre=Children's", "genre=Comedy", "decade=1990s"]
    assert films["6"]["title"] == "Shanghai Triad (Yao a yao yao dao waipo qiao)"
    assert films["267"] == {"item_id": "267", "title": None, "attributes": []}
    people = dict(movielens.read_users(folder).iter_rows())
    assert people["1"] == ["age=18-24", "gender=M", "occupation=technician"]
    assert all(len(tokens) == 3 for tokens in people.values())


def test_reading_twice_gives_the_same_version(ingested: Ingested, folder: Path, tmp_path: Path) -> None:
    again = ingest_movielens(tmp_path, folder, NOW)
    assert again.dataset.manifest.data_version == ingested.dataset.manifest.data_version
