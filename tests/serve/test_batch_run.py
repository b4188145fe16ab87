"""`python -m jobs.recommend_batch`: what the endpoint answers at that moment, for everybody, and never done twice."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pyarrow.parquet as pq
import pytest

from cluster.errors import TowerlineError
from cluster.session import RaySession
from cluster.settings import Settings
from data.dataset import Dataset
from data.parallel import in_process
from jobs.recommend_batch import main
from serve.batch_run import Recommended, read_users, recommend_all
from serve.config import AppConfig
from serve.graph import GraphConfig
from serve.loading import online_store
from tests.serve.conftest import HISTORY, USERS, Answering

AT = datetime(2024, 6, 1, 12, tzinfo=UTC)
CONFIG = AppConfig(dataset="shop")


@pytest.fixture
def own(shop: Dataset, settings: Settings, champion: dict[str, str], tmp_path: Path) -> Settings:  # noqa: ARG001
    """A home of its own with the data set, and the registry with its champion."""
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    return Settings(home=tmp_path, mlflow_tracking_uri=settings.tracking_uri)


def recommended(own: Settings, **more: Any) -> Recommended:
    asked = {"config": CONFIG, "users": None, "at": AT, "count": 5, "run": in_process, **more}
    return recommend_all(own, **asked)


def table(found: Recommended) -> pl.DataFrame:
    return pl.read_parquet(found.folder / "part-*.parquet")


def items_and_scores(rows: pl.DataFrame, user: str) -> tuple[list[str], list[float]]:
    mine = rows.filter(pl.col("user_id") == user).sort("rank")
    return mine["item_id"].to_list(), mine["score"].to_list()


def require_same_answers(client: httpx.Client, rows: pl.DataFrame, users: Sequence[str], count: int) -> None:
    for user in users:
        answer = client.post("/v1/recommend", json={"user_id": user, "count": count}).json()
        items, scores = items_and_scores(rows, user)
        assert items == [item["item_id"] for item in answer["items"]]
        assert scores == pytest.approx([item["score"] for item in answer["items"]], abs=1e-5)


def interrupted_after(count: int) -> Callable[..., Iterator[Any]]:
    """A run that is killed when so many parts are there."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        yield from map(function, tasks[:count])
        raise KeyboardInterrupt

    return run


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(own: Settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        recommended(own, users_per_part=3, run=interrupted_after(2))
    (building,) = (own.home / "recommendations" / "shop").iterdir()
    assert building.name.startswith(".building-")
    (building / ".part-00002.parquet.part").write_bytes(b"half a par")
    first = (building / "part-00000.parquet").stat().st_mtime_ns
    found = recommended(own, users_per_part=3)
    assert (found.parts, found.made) == (4, 2)
    assert (found.folder / "part-00000.parquet").stat().st_mtime_ns == first
    assert sorted(each.name for each in found.folder.iterdir()) == [
        "manifest.json",
        *(f"part-{number:05d}.parquet" for number in range(4)),
    ]
    again = recommended(own, users_per_part=3)
    assert (again.folder, again.made, again.rows) == (found.folder, 0, found.rows)
    whole = table(recommended(own, users_per_part=100))
    assert table(found).drop("score").equals(whole.drop("score"))
    assert table(found)["score"].to_list() == pytest.approx(whole["score"].to_list(), abs=1e-5)


def test_without_a_moment_a_run_keeps_the_one_that_it_began_with(own: Settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        recommended(own, at=None, users_per_part=6, run=interrupted_after(1))
    between = datetime.now(UTC)
    found = recommended(own, at=None, users_per_part=6)
    assert between - timedelta(minutes=5) < found.provenance.at < between
    assert (found.parts, found.made) == (2, 1)
    assert table(found)["at"].unique().to_list() == [found.provenance.at]


def test_what_it_is_made_of_is_beside_it_and_in_every_part(own: Settings, champion: dict[str, str]) -> None:
    found = recommended(own)
    made = found.provenance
    assert (made.variant, made.models) == ("variant-a", champion)
    assert (made.at, made.users, made.count, made.graph) == (AT, len(USERS), 5, CONFIG.graph)
    part = pq.read_metadata(found.folder / "part-00000.parquet").metadata[b"towerline"]
    assert json.loads(part) == json.loads((found.folder / "manifest.json").read_text())
    rows = table(found)
    assert rows.height == found.rows == 5 * len(USERS)
    assert rows["rank"].to_list() == [1, 2, 3, 4, 5] * len(USERS)
    assert rows["variant"].unique().to_list() == ["variant-a"]
    assert rows["degraded"].list.len().sum() == 0


def test_other_stages_rules_or_users_are_another_run(own: Settings, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("user 3\nnever seen\nuser 3\n")
    some = recommended(own, users=read_users(tmp_path / "users.txt"))
    assert table(some).group_by("user_id", maintain_order=True).agg(pl.col("known_user").first()).rows() == [
        ("never seen", False),
        ("user 3", True),
    ]
    pl.DataFrame({"user_id": ["user 3"]}).write_parquet(tmp_path / "users.parquet")
    one = recommended(own, users=read_users(tmp_path / "users.parquet"))
    remote = AppConfig(dataset="shop", graph=GraphConfig(ranking="remote", diversity_lambda=0.3))
    other = recommended(own, users=["user 3"], config=remote)
    assert len({some.folder, one.folder, other.folder}) == 3
    assert items_and_scores(table(one), "user 3")[0] == items_and_scores(table(some), "user 3")[0]
    assert items_and_scores(table(other), "user 3")[0] != items_and_scores(table(some), "user 3")[0]


def test_what_cannot_be_done_is_said(own: Settings, tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match="--count is 0, expected 1 to 100"):
        recommended(own, count=0)
    with pytest.raises(TowerlineError, match="nobody to recommend to"):
        recommended(own, users=[])
    with pytest.raises(TowerlineError, match="'shoes' does not exist"):
        recommended(own, config=AppConfig(dataset="shoes"))
    with pytest.raises(TowerlineError, match=r"users\.parquet.*expected Parquet with a column 'user_id'"):
        read_users(tmp_path / "users.parquet")


@pytest.mark.cluster
def test_on_ray_data_it_is_what_the_endpoint_answers_at_that_moment(
    own: Settings,
    ray_session: RaySession,  # noqa: ARG001
    answering: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user who came since the data set was ingested is among them."""
    store = online_store(own, "shop", HISTORY)
    recommended(own)
    store.append_events(
        pl.DataFrame(
            {
                "event_id": ["later"],
                "user_id": ["latecomer"],
                "item_id": ["item-5"],
                "event_type": ["buy"],
                "value": pl.Series([4.0], dtype=pl.Float32),
                "event_time": pl.Series([AT - timedelta(hours=1)], dtype=pl.Datetime("us", "UTC")),
                "decision_id": pl.Series([None], dtype=pl.String),
            }
        )
    )
    monkeypatch.setenv("TOWERLINE_HOME", str(own.home))
    monkeypatch.setenv("TOWERLINE_MLFLOW_TRACKING_URI", own.tracking_uri)
    main(["--dataset", "shop", "--at", "2024-06-01T14:00:00+02:00", "--count", "7"])
    said = capsys.readouterr().out
    assert "91 recommendations for 13 users as of 2024-06-01T12:00:00Z in " in said
    rows = pl.read_parquet(Path(said.strip().rpartition(" in ")[2]) / "*.parquet")
    with answering(store, own.home / "decisions", AT) as client:
        require_same_answers(client, rows, (*USERS, "latecomer"), 7)
    report = json.loads((own.home / "reports" / "recommend_batch.json").read_text())
    assert (report["figures"]["users"], report["figures"]["rows"], report["config"]["variant"]) == (13, 91, "variant-a")
