"""A data set that grows by a stream, and a champion that goes on from what it knows: the jobs in their order."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import redis
import tomlkit

from cluster.reports import Report
from cluster.session import RaySession
from cluster.settings import Settings
from data.dataset import open_dataset
from data.events import FIRST_APPENDED_ROW
from data.features import with_sequence
from data.schema import ITEM_ID, SOURCE_ROW, USER_ID
from jobs import ingest_events, stream_events, train_ranking, train_retrieval
from jobs.training import TrainingConfig
from tests.train.conftest import RANKING, RETRIEVAL
from tests.train.planted import GROUP_SIZE, GROUPS, item_id, planted_events, planted_items
from train.card import ModelCard
from train.cases import cases
from train.gate import GateConfig
from train.incremental import IncrementalConfig
from train.ledger import read_ledger
from train.loop import FitConfig
from train.models.retrieval import RetrievalModel
from train.pair import TwoTowerRecommender
from train.registry import load_two_tower
from train.scaling import Scaling

pytestmark = pytest.mark.cluster

NEW_ITEMS = [item_id(group, GROUP_SIZE - 1) for group in range(GROUPS)]
NEW_USERS = [f"user {number}" for number in range(0, 240, 12)]
CONFIG = TrainingConfig(
    retrieval=RETRIEVAL,
    ranking=RANKING,
    scaling=Scaling(backend="none"),
    incremental=IncrementalConfig(fit=FitConfig(epochs=6, patience=2), learning_rate=5e-3, replay=0.5),
    gate=GateConfig(max_calibration_error=1, max_latency_ms=60_000, min_new_users=20),
)
"""Three epochs do not calibrate a ranker, and the machine may be busy."""


@dataclass(frozen=True)
class Grown:
    """What the jobs left behind."""

    settings: Settings
    champion: ModelCard
    """The two-tower's, before anything new came."""
    version: str
    model: RetrievalModel
    card: ModelCard
    """The challenger's, which went on from there."""
    printed: str
    """By the last `train_ranking`."""

    def report(self, name: str) -> Report:
        return Report.model_validate_json((self.settings.home / "reports" / f"{name}.json").read_text())


def in_two_parts() -> tuple[pl.DataFrame, pl.DataFrame]:
    """As a file and as a stream: the last tenth, and all that new users do or that is done with new items."""
    events = planted_events(0).sort("event_time", SOURCE_ROW).with_row_index("place")
    late = pl.col("place") >= events.height * 9 // 10
    is_new = late | pl.col(USER_ID).is_in(NEW_USERS) | pl.col(ITEM_ID).is_in(NEW_ITEMS)
    columns = ["user_id", "item_id", "event_type", "value", "event_time"]
    return events.filter(~is_new).select(columns), events.filter(is_new).select(columns)


def ingest_the_file(folder: Path, events: pl.DataFrame) -> None:
    events.write_parquet(folder / "events.parquet")
    items = planted_items().filter(~pl.col(ITEM_ID).is_in(NEW_ITEMS))
    items.select(ITEM_ID, "title", group=pl.col("attributes").list.first()).write_parquet(folder / "items.parquet")
    files = ["--events", str(folder / "events.parquet"), "--items", str(folder / "items.parquet")]
    ingest_events.main(["--dataset", "grown", *files, "--item-attributes", "group"])


def stream(redis_url: str, events: pl.DataFrame) -> None:
    with redis.Redis.from_url(redis_url) as client:
        sending = client.pipeline(transaction=False)
        for row in events.with_columns(pl.col("event_time").dt.to_string("iso:strict")).iter_rows(named=True):
            sending.xadd("grown", {"event": json.dumps(row)})
        sending.execute()
    stream_events.main(["--dataset", "grown", "--from", f"{redis_url}?stream=grown", "--until-empty"])


def config_file(folder: Path, name: str, config: TrainingConfig) -> list[str]:
    path = folder / f"{name}.toml"
    path.write_text(tomlkit.dumps(config.model_dump(mode="json", exclude_none=True)))
    return ["--dataset", "grown", "--config", str(path)]


@pytest.fixture
def grown(
    tmp_path: Path,
    redis_url: str,
    ray_session: RaySession,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Grown:
    """The champion is trained in one process, what goes on from it by Horovod's workers."""
    assert ray_session
    settings = Settings(home=tmp_path)
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    old, new = in_two_parts()
    ingest_the_file(tmp_path, old)
    alone = config_file(tmp_path, "alone", CONFIG)
    train_retrieval.main(alone)
    train_ranking.main(alone)
    _, _, champion = load_two_tower(settings.tracking_uri, "grown", "champion")
    stream(redis_url, new)
    ingest_events.main(["--dataset", "grown", "--appended"])
    with_horovod = CONFIG.model_copy(update={"scaling": Scaling(backend="horovod", num_workers=2)})
    train_retrieval.main([*config_file(tmp_path, "horovod", with_horovod), "--from", "champion"])
    capsys.readouterr()
    train_ranking.main(alone)
    version, model, card = load_two_tower(settings.tracking_uri, "grown", "challenger")
    return Grown(settings, champion, version, model, card, capsys.readouterr().out)


def test_new_users_and_items_are_learnt_and_the_gate_asks_for_what_is_new(grown: Grown) -> None:
    old, new = in_two_parts()
    dataset = open_dataset(grown.settings.home, "grown")
    assert dataset.manifest.events == old.height + new.height
    _only_what_is_new_was_learnt(grown, new.height)
    _new_items_are_recommended_and_new_users_are_asked(grown)
    _the_lineage_is_recorded(grown)
    _the_gate_asked_for_new_events(grown)


def _only_what_is_new_was_learnt(grown: Grown, new_events: int) -> None:
    events = with_sequence(open_dataset(grown.settings.home, "grown").events())
    rows = grown.card.trained_on
    learnt = rows.protocol.assign(rows.select(events))
    assert learnt[SOURCE_ROW].min() >= FIRST_APPENDED_ROW
    assert 0 < learnt.height < new_events
    assert set(NEW_USERS) <= set(learnt[USER_ID])
    assert set(NEW_ITEMS) <= set(learnt[ITEM_ID])


def _new_items_are_recommended_and_new_users_are_asked(grown: Grown) -> None:
    dataset, model = open_dataset(grown.settings.home, "grown"), grown.model
    asked = cases(grown.card.trained_on.protocol, dataset.events(), dataset.users(), model.vocabulary)
    assert set(NEW_USERS) <= set(asked.rows[USER_ID])
    lists_BK = TwoTowerRecommender(model).recommend(asked.rows, asked.exclude, 10)
    assert np.isin(lists_BK, model.vocabulary.encode_items(pl.Series(NEW_ITEMS))).any()
    figures = grown.report("train_retrieval").figures
    assert figures["ndcg@10/two_tower"] > 1.5 * figures["ndcg@10/popularity"]


def _the_lineage_is_recorded(grown: Grown) -> None:
    parent, card, champion = grown.card.parent, grown.card, grown.champion
    assert parent is not None
    assert parent.variant == champion.variant
    assert card.trained_on.learnt == champion.learnt
    assert card.scaling["backend"] == "horovod"
    assert card.seen_events.events == champion.seen_events.events + in_two_parts()[1].height
    _, _, first = load_two_tower(grown.settings.tracking_uri, "grown", parent.version)
    assert first.parent is None


def _the_gate_asked_for_new_events(grown: Grown) -> None:
    protocol = grown.card.trained_on.protocol
    assert f"events of data version {grown.champion.seen_events.label}" in protocol.words
    report = grown.report("train_ranking")
    assert report.protocol == f"{protocol.hash}: {protocol.words}"
    assert f"measured as champion {grown.champion.variant}: protocol {protocol.hash}" in grown.printed
    compared = re.findall(r"against champion (\w+) \(95 % interval \S+ to \S+ (\d+) users\)", grown.printed)
    asked = in_two_parts()[1].filter(pl.col(USER_ID).is_in(NEW_USERS))[USER_ID].n_unique()
    assert compared
    assert compared[0][0] == grown.champion.variant
    assert int(compared[0][1]) >= asked
    first, *later = read_ledger(grown.settings.tracking_uri, "grown").entries
    assert first.to_variant == grown.champion.variant
    assert len(later) == ("is champion now" in grown.printed)
