"""Who may be asked: what has seen the answers is refused, with the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from data.dataset import write_dataset
from tests.train.conftest import DonePath
from tests.train.planted import planted_events, planted_items, planted_users
from train.contestants import Contestants, Registration, add_sources, dataset_vocabulary, require_same_catalogue
from train.protocols import LEAVE_ONE_OUT, EvaluationProtocol, GlobalTime, LeaveOneOut
from train.vocabulary import Vocabulary


def found(path: DonePath, protocol: EvaluationProtocol) -> Contestants:
    workflow = path.workflow
    return Registration(workflow.dataset, protocol, workflow.settings.tracking_uri).contestants()


def test_the_challenger_is_asked_and_the_champion_who_knows_the_answers_is_not(path: DonePath) -> None:
    contestants = found(path, LEAVE_ONE_OUT)
    assert list(contestants.recommenders) == ["two_tower"]
    assert contestants.history_length == 12
    users = path.workflow.dataset.manifest.held_out_users
    reason = (
        f"the champion's two-tower (variant {path.pair.variant}) was trained on {users} of the {users} test events "
        f"(train and validation and test of leave-one-out {LEAVE_ONE_OUT.hash}): its figures would mean nothing; "
        "--refit trains the same configuration on the protocol's train split"
    )
    assert contestants.left_out == [reason]


@pytest.mark.parametrize("protocol", [LeaveOneOut(cut_off=2), GlobalTime()])
def test_by_another_protocol_the_challenger_has_seen_answers_too(path: DonePath, protocol: EvaluationProtocol) -> None:
    contestants = found(path, protocol)
    assert not contestants.recommenders
    challenger, champion = contestants.left_out
    assert challenger.startswith("the challenger was trained on ")
    assert f"(train of leave-one-out {LEAVE_ONE_OUT.hash})" in challenger
    assert champion.startswith("the champion's two-tower (variant")


def test_who_was_chosen_by_the_answers_is_not_asked_either(path: DonePath) -> None:
    """The second last events select models by leave-one-out, and are asked for one cut-off earlier."""
    contestants = found(path, LeaveOneOut(cut_off=1))
    assert not contestants.recommenders
    assert contestants.left_out[0].startswith("the challenger was chosen by ")
    assert f"(validation of leave-one-out {LEAVE_ONE_OUT.hash})" in contestants.left_out[0]


def test_models_of_other_data_are_left_out(path: DonePath, tmp_path: Path) -> None:
    dataset = path.workflow.dataset
    changed = write_dataset(
        tmp_path,
        "planted",
        events=planted_events(seed=1),
        items=planted_items(),
        users=planted_users(),
        quarantine=dataset.quarantine(),
        source="made up, again",
    )
    contestants = Registration(changed, LEAVE_ONE_OUT, path.workflow.settings.tracking_uri).contestants()
    assert not contestants.recommenders
    old, new = (each.manifest.data_version[:12] for each in (dataset, changed))
    for line in contestants.left_out:
        assert line.endswith(f"was trained on data version {old}, which is now {new}")


def test_where_nothing_is_registered_the_reasons_are_said(path: DonePath) -> None:
    other = replace(path.workflow.dataset, name="other")
    contestants = Registration(other, LEAVE_ONE_OUT, path.workflow.settings.tracking_uri).contestants()
    assert not contestants.recommenders
    challenger, champion = contestants.left_out
    assert challenger.startswith("no challenger: ")
    assert champion.startswith("no champion: ")
    assert "jobs.train_retrieval --dataset other" in challenger


def test_sources_are_fitted_on_the_train_split(path: DonePath) -> None:
    dataset = path.workflow.dataset
    contestants = Contestants(dataset_vocabulary(dataset, LEAVE_ONE_OUT))
    add_sources(contestants, LEAVE_ONE_OUT, dataset.events())
    assert list(contestants.recommenders) == ["popularity", "popularity_recent", "item_item", "ease", "ials"]
    assert not contestants.left_out
    baseline = path.workflow.baselines(contestants.vocabulary)["item_item"]
    cases = path.workflow.cases(contestants.vocabulary)
    lists = [
        source.recommend(cases.rows, cases.exclude, 5).tolist()
        for source in (baseline, contestants.recommenders["item_item"])
    ]
    assert lists[0] == lists[1]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (("a", "b"), "there are 1 items that the model does not have, 'c' for one"),
        (("a", "b", "c", "d", "e"), "there are 2 items that the data set does not have, 'd' for one"),
        (("a", "b", "d"), "the data set does not have, 'd' for one and 1 items that the model does not have, 'c'"),
    ],
)
def test_a_catalogue_of_other_items_is_refused(items: tuple[str, ...], message: str) -> None:
    expected = Vocabulary(("a", "b", "c"), (), (), ())
    require_same_catalogue("the challenger", Vocabulary(("c", "a", "b"), (), (), ()), expected)
    with pytest.raises(
        TowerlineError, match=f"the vocabulary of the challenger is not that of the data set: .*{message}"
    ):
        require_same_catalogue("the challenger", Vocabulary(items, (), (), ()), expected)
