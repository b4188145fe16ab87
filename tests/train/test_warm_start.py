from pathlib import Path

import polars as pl
import pytest
import torch

from cluster.errors import TowerlineError
from data.dataset import write_dataset
from data.features import with_sequence
from data.known_events import KnownEvents
from data.offline.store import read_examples
from data.quality.validation import polars_schema
from data.schema import QUARANTINE
from tests.train.planted import (
    GROUP_SIZE,
    GROUPS,
    Planted,
    build_here,
    item_id,
    planted_events,
    planted_items,
    planted_users,
)
from train.communicator import SingleProcess
from train.loop import FitConfig, fit
from train.models.retrieval import RetrievalModel
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, RetrievalTask, retrieval_task, train_retrieval
from train.scaling import Scaling
from train.training_rows import Learnt, TrainingRows
from train.vocabulary import Vocabulary

CONFIG = RetrievalConfig(
    two_tower=TwoTowerConfig(embedding_dim=16, history_length=8),
    fit=FitConfig(epochs=3, metric="ndcg@10"),
    batch_size=64,
)
HERE = Scaling(backend="none")
NEWEST = item_id(GROUPS - 1, GROUP_SIZE - 1)
"""Of no catalogue: only events name it."""


@pytest.fixture(scope="module")
def half(planted: Planted) -> int:
    """The moment up to which the first model knows the data set."""
    return read_examples(planted.folder).height // 2


@pytest.fixture(scope="module")
def first(planted: Planted, half: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the first half of the events, when nobody knew the newest item nor whether a place is odd."""
    moment = read_examples(planted.folder).filter(pl.col("sequence") == half)["event_time"].item()
    earlier = write_dataset(
        tmp_path_factory.mktemp("earlier"),
        "earlier",
        events=planted_events(0).filter(pl.col("event_time") < moment, pl.col("item_id") != NEWEST),
        items=planted_items().with_columns(pl.col("attributes").list.head(1)),
        users=planted_users(),
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )
    task = retrieval_task(earlier, build_here(tmp_path_factory.mktemp("examples"), earlier), CONFIG)
    trained = train_retrieval(task, HERE, name="first", storage=tmp_path_factory.mktemp("runs"))
    folder = tmp_path_factory.mktemp("first")
    trained.model.save(folder)
    return folder


@pytest.fixture(scope="module")
def new(planted: Planted, half: int) -> TrainingRows:
    """The second half of the events: what came before, in time and in the source, counts as learnt."""
    events = with_sequence(planted.dataset.events())
    rows = TrainingRows(before=half)
    return TrainingRows(learnt=Learnt(known=KnownEvents.of("all", events), rows=rows))


def test_what_was_known_keeps_its_code_and_what_is_new_comes_after() -> None:
    before = Vocabulary(("b", "a"), ("kind=x",), (), (1.0,), ("seen",))
    now = Vocabulary(("a", "c", "b", "d"), ("kind=w", "kind=x"), ("age=9",), (2.0, 3.0), ("bought", "seen"))
    grown = before.grown(now)
    assert grown == Vocabulary(("b", "a", "c", "d"), ("kind=x", "kind=w"), ("age=9",), (1.0,), ("seen", "bought"))
    assert grown.grown(now) == grown


def test_it_begins_where_the_other_model_ended(planted: Planted, new: TrainingRows, first: Path) -> None:
    task = retrieval_task(planted.dataset, planted.folder, CONFIG, new, start=first)
    before, network = RetrievalModel.load(first), RetrievalTask(task).model
    known = before.vocabulary.num_items
    assert task.vocabulary.items[:known] == before.vocabulary.items
    assert task.vocabulary.items[known:] == (NEWEST,)
    assert {"odd=0", "odd=1"} <= set(task.vocabulary.item_attributes) - set(before.vocabulary.item_attributes)
    torch.testing.assert_close(network.item.weight[: known + 1], before.network.item.weight)
    assert network.item.weight[known + 1 :].count_nonzero() == 0
    torch.testing.assert_close(network.query.weight, before.network.query.weight)
    attributes = len(before.vocabulary.item_attributes) + 1
    torch.testing.assert_close(network.item_attribute.weight[:attributes], before.network.item_attribute.weight)
    assert network.item_attribute.weight[attributes:].count_nonzero(dim=1).all()


def test_events_are_counted_once(planted: Planted, new: TrainingRows, first: Path) -> None:
    """What an item was chosen before counts, if those events are not learnt from again."""
    before = RetrievalModel.load(first)
    known = before.vocabulary.num_items
    for rows, seen_before in ((new, 1), (TrainingRows(), 0)):
        task = RetrievalTask(retrieval_task(planted.dataset, planted.folder, CONFIG, rows, start=first))
        counts_I = task.model.item_frequency_I.clone()
        counts_I[: known + 1] -= seen_before * before.network.item_frequency_I
        assert counts_I.sum() == rows.select(read_examples(planted.folder)).height
        assert counts_I.min() == 0


def test_it_knows_before_it_learns_and_learns_from_there(planted: Planted, new: TrainingRows, first: Path) -> None:
    short = FitConfig(epochs=1)
    known, loss = [], []
    for start in (first, None):
        task = RetrievalTask(retrieval_task(planted.dataset, planted.folder, CONFIG, new, start=start))
        task.model.eval()
        known.append(task.validate()["ndcg@10"])
        loss.append(fit(task, SingleProcess(), short).history[-1].loss)
    assert known[0] > 1.5 * known[1]
    assert loss[0] < 0.9 * loss[1]


def test_pairs_of_all_events_are_kept(planted: Planted, new: TrainingRows, first: Path, tmp_path: Path) -> None:
    task = retrieval_task(planted.dataset, planted.folder, CONFIG, new, start=first)
    trained = train_retrieval(task, HERE, name="second", storage=tmp_path)
    scratch = train_retrieval(
        retrieval_task(planted.dataset, planted.folder, CONFIG), HERE, name="all", storage=tmp_path
    )
    assert trained.model.covisitation.nnz == scratch.model.covisitation.nnz


def test_a_model_of_another_shape_is_refused(planted: Planted, first: Path) -> None:
    wider = CONFIG.model_copy(update={"two_tower": TwoTowerConfig(embedding_dim=32, history_length=8)})
    task = retrieval_task(planted.dataset, planted.folder, wider, start=first)
    with pytest.raises(TowerlineError, match=r"shape \(\d+, 16\) as '.*asks for .* shape \(\d+, 32\)"):
        RetrievalTask(task)
