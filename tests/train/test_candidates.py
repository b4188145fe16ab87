"""Nothing that a ranker learns from was unknown at its moment."""

import numpy as np
import polars as pl
import pytest

from data.offline.examples import examples_of
from data.offline.store import read_examples
from data.schema import EVENTS
from data.splits import TRAIN
from tests.train.planted import HISTORY, Planted
from train.candidates import Candidates, ItemFeatures, find_candidates
from train.histories import Histories
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN

COUNT = 15


def candidates_of(
    events: pl.DataFrame, planted: Planted, retrieval: RetrievalModel, sequences: pl.Series
) -> Candidates:
    examples = examples_of(events, planted.dataset.items(), planted.dataset.users(), HISTORY)
    rows = examples.filter(pl.col("sequence").is_in(sequences.to_list()))
    items = ItemFeatures(events, retrieval.vocabulary)
    return find_candidates(retrieval, rows, Histories(examples, retrieval.vocabulary), items, COUNT)


@pytest.fixture
def events(planted: Planted) -> pl.DataFrame:
    return planted.dataset.events()


@pytest.fixture
def found(events: pl.DataFrame, planted: Planted, random_retrieval: RetrievalModel) -> Candidates:
    sequences = read_examples(planted.folder).filter(pl.col("split") == TRAIN)["sequence"].gather_every(9)
    return candidates_of(events, planted, random_retrieval, sequences)


def test_nobody_is_offered_what_he_had_before(
    found: Candidates, events: pl.DataFrame, random_retrieval: RetrievalModel
) -> None:
    vocabulary = random_retrieval.vocabulary
    ordered = events.sort("event_time", "source_row")
    offered_targets = 0
    for user, item, sequence, codes in zip(
        found.rows["user_id"], found.rows["item_id"], found.rows["sequence"], found.codes_BK.tolist(), strict=True
    ):
        earlier = set(ordered[:sequence].filter(pl.col("user_id") == user)["item_id"])
        offered = vocabulary.item_ids(code for code in codes if code != UNKNOWN)
        assert len(offered) == COUNT
        assert not earlier & set(offered)
        offered_targets += item in offered
    assert offered_targets > 10, "a mask that also hides what comes next would hide every answer"


def test_candidates_are_the_best_of_the_model(found: Candidates, random_retrieval: RetrievalModel) -> None:
    scores_BI = random_retrieval.encode_users(found.rows) @ random_retrieval.item_vectors_ID.T
    np.testing.assert_allclose(np.take_along_axis(scores_BI, found.codes_BK, axis=1), found.scores_BK, rtol=1e-5)
    assert (np.diff(found.scores_BK, axis=1) <= 0).all()


def test_item_features_count_the_past(found: Candidates, planted: Planted, random_retrieval: RetrievalModel) -> None:
    examples = read_examples(planted.folder)
    for row in range(0, found.rows.height, 10):
        sequence, now = found.rows["sequence"][row], found.rows["event_time"][row]
        past = examples.filter(pl.col("sequence") < sequence)
        for code, features in zip(found.codes_BK[row].tolist(), found.item_features_BKF[row], strict=True):
            mine = past.filter(pl.col("item_id") == random_retrieval.vocabulary.item_ids([code])[0])
            expected = [0.0, 0.0, 0.0, 0.0]
            if mine.height:
                seconds = (now - mine["event_time"].max()).total_seconds()
                mean = sum(mine["value"].to_list()) / mine.height
                expected = [mine.height, mean, mine.height / past.height, seconds]
            assert features.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_future_changes_nothing(
    found: Candidates, events: pl.DataFrame, planted: Planted, random_retrieval: RetrievalModel
) -> None:
    """Other items, values and times after a moment: candidates, scores and features up to it stay as they are."""
    ordered = events.sort("event_time", "source_row")
    moment = found.rows["sequence"].sort().to_list()[found.rows.height // 2]
    past, future = ordered[: moment + 1], ordered[moment + 1 :]
    elsewhere = future.with_columns(
        pl.col("item_id").reverse(),
        pl.col("value") + 3,
        pl.col("event_time").dt.offset_by("40d"),
        pl.col("ingest_time").dt.offset_by("40d"),
    )
    asked = found.rows.filter(pl.col("sequence") <= moment)["sequence"]
    assert asked.len() > 50
    before = candidates_of(events, planted, random_retrieval, asked)
    after = candidates_of(pl.concat([past, elsewhere]).select(EVENTS.names), planted, random_retrieval, asked)
    np.testing.assert_array_equal(after.codes_BK, before.codes_BK)
    np.testing.assert_array_equal(after.scores_BK, before.scores_BK)
    np.testing.assert_array_equal(after.item_features_BKF, before.item_features_BKF)
    assert after.rows.drop("split").equals(before.rows.drop("split"))


def test_the_present_does_matter(
    found: Candidates, events: pl.DataFrame, planted: Planted, random_retrieval: RetrievalModel
) -> None:
    """The counterpart of the test above: a change in the past is seen."""
    changed = events.with_columns(pl.col("item_id").reverse(), pl.col("value") + 3)
    again = candidates_of(changed, planted, random_retrieval, found.rows["sequence"])
    assert (again.codes_BK != found.codes_BK).mean() > 0.2
    assert (again.item_features_BKF != found.item_features_BKF).mean() > 0.2


def test_a_late_event_is_not_seen_before_it_arrives(
    events: pl.DataFrame, planted: Planted, random_retrieval: RetrievalModel
) -> None:
    ordered = events.sort("event_time", "source_row")
    late = ordered.with_columns(pl.col("ingest_time").dt.offset_by("365d"))
    last = pl.Series([ordered.height - 1])
    found = candidates_of(late, planted, random_retrieval, last)
    assert (found.item_features_BKF == 0).all()
    assert found.rows["history_items"][0].to_list() == []
    assert (candidates_of(ordered, planted, random_retrieval, last).item_features_BKF > 0).any()
