import polars as pl
import pytest

from data.features import with_sequence
from tests.train.planted import Planted
from train.protocols import GlobalTime, LeaveOneOut
from train.training_rows import ALL_EVENTS, TRAIN_SPLIT, TrainingRows


@pytest.fixture(scope="module")
def events(planted: Planted) -> pl.DataFrame:
    return with_sequence(planted.dataset.events())


def test_rows_are_chosen_by_split_and_moment(events: pl.DataFrame) -> None:
    protocol = GlobalTime()
    whole = protocol.assign(events).filter(split="train")
    assert TrainingRows(protocol=protocol).select(events).equals(whole)
    part = TrainingRows(protocol=protocol, since=100, before=300).select(events)
    assert part["sequence"].to_list() == list(range(100, 300))
    assert ALL_EVENTS.select(events).height == events.height


def test_the_train_split_knows_no_test_event_and_a_refit_knows_all(events: pl.DataFrame, planted: Planted) -> None:
    users = planted.dataset.manifest.held_out_users
    assert TRAIN_SPLIT.overlap(LeaveOneOut(), events) == 0
    assert ALL_EVENTS.overlap(LeaveOneOut(), events) == users


def test_one_protocols_training_events_are_anothers_test_events(events: pl.DataFrame) -> None:
    """Counted against sets of rows."""
    for protocol in (GlobalTime(), LeaveOneOut(cut_off=2)):
        trained = set(TRAIN_SPLIT.select(events)["sequence"])
        tested = set(protocol.assign(events).filter(split="test")["sequence"])
        assert TRAIN_SPLIT.overlap(protocol, events) == len(trained & tested) > 0


def test_what_trained_is_said_in_words_and_comes_back_from_json() -> None:
    rows = TrainingRows(protocol=GlobalTime(), splits=("train", "validation"), since=5, before=9)
    assert str(rows) == f"train and validation of global-time {GlobalTime().hash}, from event 5, before event 9"
    assert TrainingRows.model_validate_json(rows.model_dump_json()) == rows
