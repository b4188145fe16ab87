"""`python -m jobs.check_skew` on the log of a real endpoint: quiet when all is well, loud when a value is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset, write_dataset
from jobs.check_skew import main
from serve.decisions import read_lines
from serve.loading import online_store
from serve.skew_check import check_skew
from tests.serve.conftest import HISTORY, USERS, Answering


@pytest.fixture
def asked(
    settings: Settings,
    champion: dict[str, str],  # noqa: ARG001
    answering: Answering,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """A home of its own, whose endpoint has answered 12 requests and heard 6 events."""
    shop = open_dataset(settings.home, "shop")
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    monkeypatch.setenv("TOWERLINE_MLFLOW_TRACKING_URI", settings.tracking_uri)
    store = online_store(Settings(), "shop", HISTORY)
    store.publish(shop)
    with answering(store, tmp_path / "decisions" / "shop") as client:
        for number, user in enumerate(USERS):
            client.post("/v1/recommend", json={"user_id": user, "count": 3}).raise_for_status()
            if number % 2:
                event = {"user_id": user, "item_id": "item-1", "value": 2}
                client.post("/v1/feedback", json={"events": [event]}).raise_for_status()
        client.get("/v1/items/item-1/similar").raise_for_status()
    return Settings()


def test_no_difference_is_said_and_reported(asked: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dataset", "shop"])
    said = capsys.readouterr().out
    assert re.search(r"12 of 12 logged decisions, [\d,]+ values computed again: no differences", said)
    assert "skipped 1 decisions: similar items" in said
    assert "user_recent_weight" in said
    report = json.loads((asked.home / "reports" / "check_skew.json").read_text())
    figures = report["figures"]
    assert (figures["decisions"], figures["logged"], figures["skipped"], figures["differences"]) == (12, 12, 1, 0)
    assert figures["values"] == sum(count for name, count in figures.items() if name.startswith("compared/"))
    assert figures["differences/item_share"] == 0
    assert json.loads((asked.home / "reports" / "check_skew_differences.json").read_text()) == []


def test_a_wrong_value_is_listed_and_fails_the_job(asked: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (asked.home / "decisions" / "shop").rglob("*.jsonl")
    first, *others = read_lines(file)
    wrong = json.loads(first)
    wrong["user_features"]["user_event_count"] += 1
    file.write_bytes(json.dumps(wrong).encode() + b"\n" + b"".join(others))
    with pytest.raises(SystemExit) as left:
        main(["--dataset", "shop"])
    assert left.value.code == 1
    assert "values computed again: 1 differences" in capsys.readouterr().out
    (listed,) = json.loads((asked.home / "reports" / "check_skew_differences.json").read_text())
    assert listed == {
        "decision_id": wrong["decision_id"],
        "entity": "user",
        "id": wrong["request"]["user_id"],
        "feature": "user_event_count",
        "online": "11",
        "offline": "10",
    }
    assert json.loads((asked.home / "reports" / "check_skew.json").read_text())["figures"]["differences"] == 1


def test_a_sample_may_be_smaller_than_the_log(asked: Settings) -> None:
    checked = check_skew(asked, "shop", 5, seed=3)
    assert len(checked.sample.decisions) == checked.skew.decisions == 5
    assert checked.sample.logged == 12


def test_what_cannot_be_compared_is_said(asked: Settings, shop: Dataset) -> None:
    with pytest.raises(TowerlineError, match="--sample is 0, expected 1 or more"):
        check_skew(asked, "shop", 0, seed=0)
    with pytest.raises(TowerlineError, match="'shoes' does not exist"):
        check_skew(asked, "shoes", 10, seed=0)
    events, rest = shop.events(), {"items": shop.items(), "users": shop.users(), "quarantine": shop.quarantine()}
    newer = write_dataset(asked.home, "shop", events=events[:-1], source="made up", **rest)
    names_both = (
        rf"holds version {shop.manifest.data_version[:12]} of it, which is now {newer.manifest.data_version[:12]}"
    )
    with pytest.raises(TowerlineError, match=names_both):
        check_skew(asked, "shop", 10, seed=0)
    online_store(asked, "shop", HISTORY).publish(open_dataset(asked.home, "shop"))
    old = rf"12 made from data version {shop.manifest.data_version[:12]}.*ask the endpoint"
    with pytest.raises(TowerlineError, match=old):
        check_skew(asked, "shop", 10, seed=0)
