from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cluster.errors import TowerlineError
from data.offline.store import read_examples
from data.splits import TEST, TRAIN, VALIDATION
from tests.train.conftest import RETRIEVAL, DonePath
from tests.train.planted import NEVER_CHOSEN, Planted, batches
from train.metrics.accuracy import hits_of, ndcg_at, recall_at
from train.models.covisitation import fit_covisitation
from train.models.retrieval import RetrievalModel
from train.ranking import moment_t1
from train.retrieval import RetrievalConfig, RetrievalTask, retrieval_task, train_retrieval
from train.scaling import Scaling
from train.training_rows import TrainingRows
from train.vocabulary import UNKNOWN

ALONE = Scaling(backend="none")


@pytest.fixture(scope="module")
def examples(planted: Planted) -> pl.DataFrame:
    return read_examples(planted.folder)


@pytest.mark.parametrize(
    "rows", [TrainingRows(), TrainingRows(before=700), TrainingRows(splits=(TRAIN, VALIDATION, TEST))]
)
def test_only_the_chosen_rows_are_learnt_from(planted: Planted, examples: pl.DataFrame, rows: TrainingRows) -> None:
    task = RetrievalTask(retrieval_task(planted.dataset, planted.folder, RETRIEVAL, rows))
    expected = examples.filter(pl.col("split").is_in(rows.splits))
    if rows.before is not None:
        expected = expected.filter(pl.col("sequence") < rows.before)
    assert len(task.order) == expected.height
    counts = np.zeros(task.model.item_frequency_I.shape[0])
    codes = task._vocabulary.encode_items(expected["item_id"])
    np.add.at(counts, codes, 1)
    assert task.model.item_frequency_I.tolist() == counts.tolist()
    seen = torch.cat([batch.target_B for batch in batches(task, 0, 0, 1)])
    assert sorted(seen.tolist()) == sorted(codes.tolist())


def test_too_few_events_are_refused(planted: Planted) -> None:
    with pytest.raises(TowerlineError, match="1 training examples; ingest more events"):
        RetrievalTask(retrieval_task(planted.dataset, planted.folder, RETRIEVAL, TrainingRows(before=1)))


def test_validation_ranks_the_whole_catalogue_with_the_history_masked(planted: Planted, examples: pl.DataFrame) -> None:
    """Against a loop over users in float64."""
    task = RetrievalTask(retrieval_task(planted.dataset, planted.folder, RETRIEVAL))
    model = RetrievalModel(
        RETRIEVAL.two_tower,
        task._vocabulary,
        task.model.state_dict(),
        fit_covisitation(examples, task._vocabulary),
    )
    task.model.eval()
    rows = examples.filter(pl.col("split") == VALIDATION)
    scores_BI = model.encode_users(rows).astype(float) @ model.item_vectors_ID.T.astype(float)
    scores_BI[:, UNKNOWN] = -np.inf
    for scores_I, user, sequence in zip(scores_BI, rows["user_id"], rows["sequence"], strict=True):
        before = examples.filter((pl.col("user_id") == user) & (pl.col("sequence") < sequence))
        scores_I[task._vocabulary.encode_items(before["item_id"])] = -np.inf
    ranked_BI = np.argsort(-scores_BI, axis=1, kind="stable")
    hits_BI = hits_of(ranked_BI, list(task._vocabulary.encode_items(rows["item_id"])[:, np.newaxis]))
    one_B = np.ones(rows.height, dtype=np.int64)
    measured = task.validate()
    assert measured["ndcg@10"] == pytest.approx(ndcg_at(hits_BI, one_B, 10).mean(), abs=0.002)
    assert measured["recall@10"] == pytest.approx(recall_at(hits_BI, one_B, 10).mean(), abs=0.01)
    assert list(measured) == ["ndcg@10", "recall@10"]


def test_training_learns_what_was_planted(path: DonePath) -> None:
    losses = [epoch.loss for epoch in path.retrieval.history]
    measured = [epoch.metrics["ndcg@10"] for epoch in path.retrieval.history]
    assert losses[-1] < 0.8 * losses[0]
    assert measured[path.retrieval.best_epoch] == max(measured) > 0.6


def test_the_model_that_finds_candidates_knows_nothing_after_t1(path: DonePath, examples: pl.DataFrame) -> None:
    t1 = moment_t1(examples, 0.8)
    model = path.past.model
    rows = examples.filter((pl.col("split") == TRAIN) & (pl.col("sequence") < t1))
    codes = model.vocabulary.encode_items(rows["item_id"])
    frequency_I = np.bincount(codes, minlength=model.vocabulary.num_items + 1)
    assert model.network.item_frequency_I.tolist() == frequency_I.tolist()
    assert (model.covisitation != fit_covisitation(rows, model.vocabulary)).nnz == 0
    longest = (rows["event_time"] - rows["history_times"].list.tail(8).list.min()).dt.total_seconds().max()
    assert model.network.longest_age.item() == longest


def test_the_model_that_serves_learnt_from_all_events(path: DonePath, planted: Planted) -> None:
    model = path.refitted.model
    codes = model.vocabulary.encode_items(planted.dataset.events()["item_id"])
    frequency_I = np.bincount(codes, minlength=model.vocabulary.num_items + 1)
    assert model.network.item_frequency_I.tolist() == frequency_I.tolist()
    assert len(path.refitted.history) == path.retrieval.best_epoch + 1
    assert path.refitted.history[0].metrics == {}


def test_a_new_item_lies_with_those_that_share_its_attribute(path: DonePath) -> None:
    """Two items without events, in the group whose attribute they have."""
    vocabulary = path.refitted.model.vocabulary
    for item in NEVER_CHOSEN:
        codes, _ = path.refitted.model.similar_items(vocabulary.item_code(item), 8)
        groups = [name.startswith("群 0/") or name in NEVER_CHOSEN for name in vocabulary.item_ids(codes)]
        assert sum(groups) >= 6


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
def test_training_is_repeatable(planted: Planted, tmp_path: Path, loss: str) -> None:
    config = RetrievalConfig.model_validate(
        RETRIEVAL.model_dump()
        | {"two_tower": RETRIEVAL.two_tower.model_dump() | {"loss": loss, "num_negatives": 20}, "fit": {"epochs": 2}}
    )
    task = retrieval_task(planted.dataset, planted.folder, config)
    first = train_retrieval(task, ALONE, name="first", storage=tmp_path)
    torch.manual_seed(99)
    second = train_retrieval(task, ALONE, name="second", storage=tmp_path)
    np.testing.assert_array_equal(first.model.item_vectors_ID, second.model.item_vectors_ID)
    assert [epoch.loss for epoch in first.history] == [epoch.loss for epoch in second.history]
    seeded = task.config.model_copy(update={"seed": 1})
    other = train_retrieval(
        retrieval_task(planted.dataset, planted.folder, seeded), ALONE, name="third", storage=tmp_path
    )
    assert not np.array_equal(first.model.item_vectors_ID, other.model.item_vectors_ID)


def test_sampled_softmax_learns_too(planted: Planted, tmp_path: Path, path: DonePath) -> None:
    two_tower = RETRIEVAL.two_tower.model_copy(update={"loss": "sampled_softmax", "num_negatives": 40})
    config = RETRIEVAL.model_copy(update={"two_tower": two_tower})
    trained = train_retrieval(
        retrieval_task(planted.dataset, planted.folder, config), ALONE, name="sampled", storage=tmp_path
    )
    best = max(epoch.metrics["ndcg@10"] for epoch in trained.history)
    assert best > 0.6 * max(epoch.metrics["ndcg@10"] for epoch in path.retrieval.history)
