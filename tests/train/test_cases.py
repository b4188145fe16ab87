"""What is asked, against the stored examples and against loops over the events."""

from collections import defaultdict

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.features import with_sequence
from data.offline.store import read_examples
from data.schema import USER_ATTRIBUTES
from tests.train.planted import HISTORY, Planted
from train.cases import Cases, cases, training_events
from train.protocols import EvaluationProtocol, GlobalTime, LeaveOneOut, StrongGeneralisation
from train.vocabulary import UNKNOWN, Vocabulary

PROTOCOLS = [LeaveOneOut(), LeaveOneOut(cut_off=2), GlobalTime(test_share=0.2), StrongGeneralisation()]


def cases_of(planted: Planted, vocabulary: Vocabulary, protocol: EvaluationProtocol, split: str = "test") -> Cases:
    dataset = planted.dataset
    return cases(protocol, dataset.events(), dataset.users(), vocabulary, split=split, history_length=HISTORY)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_rows_of_leave_one_out_are_the_examples(planted: Planted, vocabulary: Vocabulary, split: str) -> None:
    """Computed again, they equal what was stored; so training and evaluation read the same features."""
    asked = cases_of(planted, vocabulary, LeaveOneOut(), split)
    stored = read_examples(planted.folder).filter(pl.col("split") == split).sort("user_id")
    assert {"history_items", "user_mean_value", USER_ATTRIBUTES} <= set(asked.rows.columns)
    shared = [name for name in asked.rows.columns if name in stored.columns]
    assert asked.rows.select(shared).equals(stored.select(shared))
    assert [codes.tolist() for codes in asked.targets] == [[vocabulary.item_code(item)] for item in stored["item_id"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_histories_hold_all_that_was_known_and_nothing_that_is_asked(
    planted: Planted, vocabulary: Vocabulary, protocol: EvaluationProtocol
) -> None:
    asked = cases_of(planted, vocabulary, protocol)
    events = protocol.assign(with_sequence(planted.dataset.events()))
    known = defaultdict(list)
    hidden = {"test", "unused"} if isinstance(protocol, StrongGeneralisation) else {"unused"}
    for user, item, sequence, split in events.select("user_id", "item_id", "sequence", "split").iter_rows():
        if split not in hidden:
            known[user].append((sequence, vocabulary.item_code(item), item))
    for row, codes, targets in zip(asked.rows.iter_rows(named=True), asked.exclude, asked.targets, strict=True):
        before = [each for each in known[row["user_id"]] if each[0] < row["sequence"]]
        assert codes.tolist() == [code for _, code, _ in before]
        assert row["history_items"] == [item for *_, item in before][-HISTORY:]
        assert len(set(targets.tolist())) == len(targets) > 0


def test_users_without_an_earlier_event_are_asked_too(planted: Planted, vocabulary: Vocabulary) -> None:
    asked = cases_of(planted, vocabulary, GlobalTime(test_share=0.2))
    new = [row for row, met in zip(asked.rows.iter_rows(named=True), asked.exclude, strict=True) if not len(met)]
    assert new
    assert all(row["history_items"] == [] and row["user_event_count"] == 0 for row in new)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_counts_are_those_of_the_training_events(
    planted: Planted, vocabulary: Vocabulary, protocol: EvaluationProtocol
) -> None:
    training = cases_of(planted, vocabulary, protocol).training
    events = training_events(protocol, planted.dataset.events())
    assert set(events["split"]) == {"train"}
    codes = vocabulary.encode_items(events["item_id"]).tolist()
    assert training.num_users == events["user_id"].n_unique()
    pairs = set(zip(codes, events["user_id"], strict=True))
    for code in range(1, vocabulary.num_items + 1):
        assert training.events_I[code] == codes.count(code)
        assert training.users_I[code] == sum(1 for each, _ in pairs if each == code)


def test_an_item_that_the_vocabulary_lacks_is_unknown(planted: Planted, vocabulary: Vocabulary) -> None:
    whole = cases_of(planted, vocabulary, LeaveOneOut())
    gone = whole.targets[0][0]
    smaller = Vocabulary(tuple(item for item in vocabulary.items if item != vocabulary.items[gone - 1]), (), (), ())
    asked = cases_of(planted, smaller, LeaveOneOut())
    assert asked.targets[0].tolist() == [UNKNOWN]
    assert asked.training.events_I[UNKNOWN] == asked.training.users_I[UNKNOWN] == 0
    assert asked.training.events_I.sum() == whole.training.events_I.sum() - whole.training.events_I[gone]
    missing = np.array([codes[0] == gone for codes in whole.targets])
    assert np.array_equal(np.array([codes[0] == UNKNOWN for codes in asked.targets]), missing)


def test_too_few_users_are_refused(planted: Planted, vocabulary: Vocabulary) -> None:
    dataset = planted.dataset
    one = dataset.events().filter(pl.col("user_id").is_in(["user 0"]))
    with pytest.raises(TowerlineError, match="LeaveOneOut finds 1 users for its test events among 1, and needs 2"):
        cases(LeaveOneOut(), one, dataset.users(), vocabulary)
