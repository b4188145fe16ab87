"""What was logged of real traffic is what the events give; a value that is wrong is found."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest

from cluster.settings import Settings
from data.checks.skew import Skew, find_skew
from data.dataset import Dataset
from data.features import feature_fingerprints, views
from data.online.store import OnlineStore, open_online_store
from serve.decisions import Decision, StoreVersion
from serve.logged_reads import logged_reads, sample_decisions
from tests.serve.conftest import HISTORY, ITEMS, USERS, Answering, published

VIEWS = views(HISTORY)


@dataclass(frozen=True)
class Served:
    """An endpoint that was asked and told things by six clients at once, and then stopped."""

    shop: Dataset
    store: OnlineStore
    folder: Path
    """Of the decision log."""
    version: StoreVersion

    def decisions(self, size: int = 1000) -> tuple[Decision, ...]:
        return sample_decisions(self.folder, size, 0, self.version).decisions

    def skew_of(self, decisions: Sequence[Decision]) -> Skew:
        return find_skew(self.shop, self.store.appended_events(), VIEWS, logged_reads(decisions, VIEWS))


@pytest.fixture(scope="module")
def version(shop: Dataset) -> StoreVersion:
    return StoreVersion(data_version=shop.manifest.data_version, fingerprints=feature_fingerprints(HISTORY))


@pytest.fixture(scope="module")
def served(
    shop: Dataset, answering: Answering, version: StoreVersion, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    store = published(shop, tmp_path_factory.mktemp("store"))
    return Served(shop, store, six_clients(store, answering, tmp_path_factory.mktemp("decisions")), version)


def six_clients(store: OnlineStore, answering: Answering, folder: Path) -> Path:
    """The folder of the decision log, when all has been asked and told."""
    with answering(store, folder) as client, ThreadPoolExecutor(6) as clients:
        assert sum(clients.map(lambda number: traffic(client, number), range(6))) > 40
    return folder


def traffic(client: httpx.Client, seed: int) -> int:
    """Recommendations for users of all kinds, and feedback: of now, late, of new items and of new users."""
    draw, recommended = random.Random(seed), 0
    people = [*USERS, f"new {seed}", "nobody ever"]
    for _ in range(25):
        user = draw.choice(people[:-1])
        if draw.random() < 0.5:
            late = timedelta(hours=draw.choice([0, 0, 1, 30, 24 * 400]))
            event = {
                "user_id": user,
                "item_id": draw.choice([*ITEMS, "new item"]),
                "value": draw.choice([1, 2.5, 4, -3.125]),
                "event_time": (datetime.now(UTC) - late).isoformat(),
            }
            assert client.post("/v1/feedback", json={"events": [event]}).json()["stored"] == 1
        else:
            recent = draw.sample(ITEMS, draw.choice([0, 0, 1, 3]))
            question = {"user_id": draw.choice(people), "count": 5, "recent_items": recent}
            assert client.post("/v1/recommend", json=question).status_code == 200
            recommended += 1
    return recommended


def test_real_traffic_has_no_skew(served: Served) -> None:
    decisions = served.decisions()
    skew = served.skew_of(decisions)
    assert not skew.differences.rows()
    assert skew.decisions == len(decisions) > 40
    named = {feature for view in VIEWS for feature in view.features}
    assert set(skew.compared) == named | {"item_share", "user_attributes"}
    assert skew.compared["user_event_count"] == skew.decisions
    assert skew.compared["item_share"] > 20 * skew.decisions
    assert skew.values == sum(skew.compared.values())


@pytest.mark.cluster
def test_real_traffic_has_no_skew_with_redis(
    shop: Dataset, answering: Answering, version: StoreVersion, redis_url: str, tmp_path: Path
) -> None:
    store = open_online_store(Settings(home=tmp_path, online_store=redis_url), "shop", VIEWS)
    store.publish(shop)
    served = Served(shop, store, six_clients(store, answering, tmp_path / "decisions"), version)
    assert not served.skew_of(served.decisions()).differences.rows()
    store.close()


def test_the_traffic_was_worth_checking(served: Served) -> None:
    """Feedback that raced a read, moments after it, brought items, unknown users and windows that are not empty."""
    reads = logged_reads(served.decisions(), VIEWS)
    assert served.store.appended_events().height > 40
    assert reads.users["user_events_1h"].max() > 0
    assert reads.users["known_until"].null_count() > 0
    assert reads.users.filter(pl.col("brought_items").list.len() > 0).height > 5
    assert reads.items["known_until"].n_unique() > 10


@pytest.mark.parametrize(
    ("change", "feature", "item"),
    [
        (lambda each: {"user_features": {**each.user_features, "user_mean_value": 3.0001}}, "user_mean_value", False),
        (lambda each: {"user_features": {**each.user_features, "history_items": ["x"]}}, "history_items", False),
        (
            lambda each: {"user_features": {**each.user_features, "user_attributes": ["age=99"]}},
            "user_attributes",
            False,
        ),
        (lambda each: {"everything": {**each.everything, "counted_events": 1}}, "counted_events", False),
        (lambda each: {"candidates": {**each.candidates, "item_share": [0.5] * _width(each)}}, "item_share", True),
        (
            lambda each: {"candidates": {**each.candidates, "item_recent_weight": [7.0] * _width(each)}},
            "item_recent_weight",
            True,
        ),
    ],
)
def test_a_wrong_value_is_reported(
    served: Served, change: Callable[[Decision], dict[str, object]], feature: str, item: bool
) -> None:
    first, *others = served.decisions(10)
    differences = served.skew_of([first.model_copy(update=change(first)), *others]).differences
    assert set(differences["feature"]) == {feature}
    assert set(differences["decision_id"]) == {first.decision_id}
    assert differences.height == (_width(first) if item else 1)
    assert set(differences["id"]) <= ({*ITEMS, "new item"} if item else {first.request["user_id"], ""})
    assert (differences["online"] != differences["offline"]).all()


def _width(decision: Decision) -> int:
    return len(decision.candidates["item_id"])


def test_an_event_that_no_offline_store_knows_is_reported(served: Served) -> None:
    lost = served.store.appended_events().sort("ingest_time")[1:]
    skew = find_skew(served.shop, lost, VIEWS, logged_reads(served.decisions(), VIEWS))
    assert "counted_events" in skew.differences["feature"]
    assert skew.figures()["differences/counted_events"] > 0


def test_a_sample_is_drawn_by_its_seed(served: Served) -> None:
    drawn = [sample_decisions(served.folder, 10, seed, served.version) for seed in (1, 1, 2)]
    ids = [[each.decision_id for each in sample.decisions] for sample in drawn]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 10
    assert all(sample.logged > 40 for sample in drawn)


def decision(number: int, **changes: object) -> Decision:
    values: dict[str, object] = {
        "decision_id": f"d{number}",
        "kind": "recommend",
        "at": datetime(2024, 5, 1, tzinfo=UTC),
        "replica": "r",
        "variant": "v",
        "models": {},
        "request": {},
        "answer": (),
        "timings_ms": {},
    }
    return Decision.model_validate(values | changes)


def test_decisions_of_other_versions_are_skipped_and_counted(tmp_path: Path, version: StoreVersion) -> None:
    older = StoreVersion(data_version="0123456789abcdef", fingerprints=version.fingerprints)
    other = StoreVersion(
        data_version=version.data_version, fingerprints={**version.fingerprints, "user_activity": "abc"}
    )
    decisions = [
        decision(1, store=version),
        decision(2, store=older),
        decision(3, store=older),
        decision(4, store=other),
        decision(5),
        decision(6, kind="similar"),
        decision(7, store=version, degraded=("ranking",)),
    ]
    (tmp_path / "log.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in decisions))
    sample = sample_decisions(tmp_path, 10, 0, version)
    assert [each.decision_id for each in sample.decisions] == ["d1"]
    assert dict(sample.skipped) == {
        "made from data version 0123456789ab": 2,
        "made from feature view user_activity by definition abc": 1,
        "the online store was published anew at that moment, or not named yet": 1,
        "similar items: made without features": 1,
        "ranking was skipped: made without item features": 1,
    }
