"""The same questions, with less known of who asks."""

import numpy as np
import pytest

from cluster.errors import TowerlineError
from data.features import with_sequence
from tests.train.planted import HISTORY, Planted
from train.cases import Cases, cases
from train.cold_start import drawn, with_known_events
from train.protocols import EvaluationProtocol, GlobalTime, LeaveOneOut, StrongGeneralisation
from train.vocabulary import Vocabulary

PROTOCOLS = [LeaveOneOut(), GlobalTime(test_share=0.2), StrongGeneralisation()]


def questions(
    planted: Planted, vocabulary: Vocabulary, protocol: EvaluationProtocol, split: str = "validation"
) -> Cases:
    dataset = planted.dataset
    return cases(protocol, dataset.events(), dataset.users(), vocabulary, split=split, history_length=HISTORY)


def cut(planted: Planted, asked: Cases, known_events: int) -> Cases:
    visible = asked.protocol.visible(asked.protocol.assign(with_sequence(planted.dataset.events())))
    return with_known_events(asked, visible, known_events, HISTORY)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("known_events", [0, 1, 3])
def test_only_the_last_events_are_known(
    planted: Planted, vocabulary: Vocabulary, protocol: EvaluationProtocol, known_events: int
) -> None:
    asked = questions(planted, vocabulary, protocol)
    cold = cut(planted, asked, known_events)
    by_user = dict(zip(asked.rows["user_id"], range(len(asked)), strict=True))
    enough = [user for user, row in by_user.items() if len(asked.exclude[row]) >= known_events]
    assert cold.rows["user_id"].to_list() == enough
    assert cold.rows.schema == asked.rows.schema
    for row, user in enumerate(cold.rows["user_id"]):
        full = by_user[user]
        whole = asked.rows["history_items"][full].to_list()
        assert cold.rows["history_items"][row].to_list() == whole[len(whole) - known_events :]
        assert cold.rows["user_event_count"][row] == known_events
        assert cold.rows["user_attributes"][row].to_list() == asked.rows["user_attributes"][full].to_list()
        np.testing.assert_array_equal(cold.exclude[row], asked.exclude[full])
        np.testing.assert_array_equal(cold.targets[row], asked.targets[full])


def test_all_events_known_is_the_question_itself(planted: Planted, vocabulary: Vocabulary) -> None:
    asked = questions(planted, vocabulary, LeaveOneOut(), "test")
    counts = asked.rows["user_event_count"]
    most = int(counts.mode().min())  # type: ignore[arg-type]
    cold = cut(planted, asked, most)
    same = asked.rows.filter(counts == most)
    assert same.height > 10
    assert cold.rows.filter(cold.rows["user_id"].is_in(same["user_id"].implode())).equals(same)


def test_users_are_drawn_by_the_seed(planted: Planted, vocabulary: Vocabulary) -> None:
    asked = questions(planted, vocabulary, LeaveOneOut())
    one, again, other = drawn(asked, 20, 0), drawn(asked, 20, 0), drawn(asked, 20, 1)
    assert len(one) == len(one.targets) == len(one.exclude) == 20
    assert one.rows.equals(again.rows)
    assert not one.rows.equals(other.rows)
    assert drawn(asked, 10_000, 0).rows.equals(asked.rows)


def test_more_events_than_users_have_are_refused(planted: Planted, vocabulary: Vocabulary) -> None:
    asked = questions(planted, vocabulary, LeaveOneOut())
    with pytest.raises(TowerlineError, match="0 users have 50 events before they are asked, and 2 or more are needed"):
        cut(planted, asked, 50)
