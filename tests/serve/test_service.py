"""Feedback is in the features of the next answer, whatever the online store is."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.settings import Settings
from data.dataset import Dataset
from data.features import views
from data.online.store import open_online_store
from serve.decisions import Decision, read_decisions
from tests.serve.conftest import HISTORY, Answering


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.cluster)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of an online store of its own."""
    address = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings(home=tmp_path, online_store=address)


def test_feedback_is_in_the_next_answers_features(
    settings: Settings, shop: Dataset, answering: Answering, tmp_path: Path
) -> None:
    """The very next one: the event counts for its user, its item and everybody."""
    store = open_online_store(settings, "shop", views(HISTORY))
    store.publish(shop)
    with answering(store, tmp_path / "decisions") as client:
        before = ask(client, "user 4")
        liked = before["items"][-1]["item_id"]
        event = {"user_id": "user 4", "item_id": liked, "value": 4.5}
        assert client.post("/v1/feedback", json={"events": [event]}).json()["stored"] == 1
        after = ask(client, "user 4")
        other = ask(client, "user 5")
    store.close()
    logged = {each.decision_id: each for each in read_decisions(tmp_path / "decisions")}
    old, new, others = (logged[answer["decision_id"]] for answer in (before, after, other))
    features = new.user_features
    assert features["user_event_count"] == old.user_features["user_event_count"] + 1
    assert (features["user_events_1h"], features["history_items"][-1], features["history_values"][-1]) == (
        1,
        liked,
        4.5,
    )
    assert features["user_seconds_since_last"] < old.user_features["user_seconds_since_last"]
    assert liked not in [item["item_id"] for item in after["items"]]
    assert item_events(others, liked) == item_events(old, liked) + 1
    assert new.everything["counted_events"] == old.everything["counted_events"] + 1


def ask(client: httpx.Client, user: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/v1/recommend", json={"user_id": user, "count": 5}).json()
    return answer


def item_events(decision: Decision, item: str) -> int:
    """What the decision knew of an item's number of events."""
    return dict(zip(decision.candidates["item_id"], decision.candidates["item_event_count"], strict=True))[item]
