"""The order is what names and profile make of it; only cold users get another one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from serve.batch import Batch, Call, Profile
from serve.graph import RANKED
from serve.stages.profile import MAX_LIKED, GatherProfiles, profile_of
from serve.stages.rerank import NamePreferences, Rerank, blended_order, prompt, prompt_version
from serve.steps import run_stages
from serve.variant import Variant
from tests.serve.graphs import NOW, Stages
from tests.serve.test_reranking_policy import policy

CALLS = (Call("a", "user 1", 5), Call("b", "nobody", 5), Call("c", "nobody else", 5, ("item-1",)))


def shared_letters(text: str, names: Sequence[str]) -> list[float]:
    """A likelihood that can be computed by hand: how often the prompt has the name's letters, less a line for each."""
    return [float(sum(text.count(letter) for letter in name.strip()) - 10 * len(name)) for name in names]


@pytest.fixture
def ranked(shop_stages: Stages, shop_variant: Variant) -> Batch:
    batch = run_stages([(name, shop_stages[name]) for name in RANKED], Batch(CALLS, NOW))
    return GatherProfiles(shop_variant.catalogue, 6).run(batch)


def rerank(**changes: float) -> Rerank:
    return Rerank(shared_letters, policy(**changes))


def test_the_profile_holds_names_and_attributes_and_nothing_else(ranked: Batch, shop_variant: Variant) -> None:
    known, nobody, brought = ranked.profiles
    assert known.attributes == ("age 1",)
    assert 1 <= len(known.liked) <= MAX_LIKED
    assert (nobody.attributes, nobody.liked) == ((), ())
    catalogue = shop_variant.catalogue
    item_1 = catalogue.title(catalogue.code("item-1"))
    assert (brought.attributes, brought.liked) == ((), (item_1,))
    titles = [catalogue.title(code) or catalogue.item_id(code) for code in ranked.codes_BK[0, :6].tolist()]
    assert [name.split() for name in known.candidates] == [title.replace("\x00", " ").split() for title in titles]


def test_a_name_is_one_line_and_a_free_slot_has_none(shop_variant: Variant) -> None:
    code = shop_variant.catalogue.code("line\nbreak")
    user = {"history_items": ["line\nbreak"], "history_values": [1.0], "user_mean_value": 1.0, "user_attributes": None}
    profile = profile_of(shop_variant.catalogue, user, [code, 0])
    assert len(profile.candidates) == 1
    assert "\n" not in profile.candidates[0] + profile.liked[0]


def test_the_prompt_is_a_list_that_was_begun() -> None:
    profile = Profile(attributes=("age 24", "gender F"), liked=("Alien", "Ghost"), candidates=("Fargo",))
    assert prompt(profile) == "One person (age 24, gender F) chose these:\n- Alien\n- Ghost\n-"
    assert prompt(Profile()) == "One person chose these:\n-"


def test_the_prompts_version_follows_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_version()
    assert before == prompt_version()
    monkeypatch.setattr("serve.stages.rerank.prompt", lambda profile: f"Liked: {profile.liked}")
    assert prompt_version() != before


def test_a_preference_is_what_the_profile_adds_to_the_likelihood_of_a_name() -> None:
    """The profile adds three T and two more line starts, whatever the names are by themselves."""
    profile = Profile(liked=("TTT",), candidates=("T", "TxT", "x"))
    assert NamePreferences(shared_letters).of(profile).tolist() == [3, 6, 0]


def test_nobodys_likelihood_of_a_name_is_asked_for_once() -> None:
    prompts = []

    def likelihood(text: str, names: Sequence[str]) -> list[float]:
        prompts.append((text, list(names)))
        return [0.0] * len(names)

    preferences = NamePreferences(likelihood)
    for candidates in (("A", "B"), ("B", "C")):
        preferences.of(Profile(liked=("Alien",), candidates=candidates))
    assert preferences.of(Profile(candidates=("D",))).tolist() == [0]
    nobodys = [names for text, names in prompts if text == prompt(Profile())]
    assert nobodys == [[" A\n", " B\n"], [" C\n"]]


@pytest.mark.parametrize(
    ("weight", "order"),
    [(1.0, [2, 1, 0]), (0.6, [2, 1, 0]), (0.4, [0, 1, 2])],
)
def test_the_weight_decides_between_ranker_and_language_model(weight: float, order: list[int]) -> None:
    assert blended_order(np.array([30.0, 20.0, 10.0]), np.array([-0.1, 0.0, 0.1]), weight).tolist() == order


def test_ties_keep_the_rankers_order() -> None:
    scores = np.array([3.0, 2.0, 1.0])
    assert blended_order(scores, np.zeros(3), 1.0).tolist() == [0, 1, 2]
    assert blended_order(scores, np.array([0.0, 1.0, 1.0]), 1.0).tolist() == [1, 2, 0]
    assert blended_order(np.zeros(0), np.zeros(0), 0.5).tolist() == []


def test_only_cold_users_get_another_order_and_only_of_the_first(ranked: Batch) -> None:
    """`nobody` has no profile, so nothing is known that could change the order."""
    answered = rerank(weight=1.0, below_events=2).run(ranked)
    expected = NamePreferences(shared_letters).of(ranked.profiles[2])
    assert np.ptp(expected) > 0
    order = np.argsort(-expected, kind="stable")
    assert order.tolist() != list(range(6))
    for row, first in ((0, range(6)), (1, range(6)), (2, order)):
        places = [*first, *range(6, ranked.codes_BK.shape[1])]
        for before, after in (
            (ranked.codes_BK, answered.codes_BK),
            (ranked.scores_BK, answered.scores_BK),
            (ranked.retrieval_BK, answered.retrieval_BK),
        ):
            np.testing.assert_array_equal(after[row], before[row, places])
        width = ranked.codes_BK.shape[1]
        features = ranked.item_features[row * width : (row + 1) * width]
        assert answered.item_features[row * width : (row + 1) * width].equals(features[places])


def test_a_policy_that_is_off_changes_nothing(ranked: Batch) -> None:
    answered = rerank(weight=1.0, below_events=0).run(ranked)
    np.testing.assert_array_equal(answered.codes_BK, ranked.codes_BK)


def test_nothing_is_asked_for_after_the_caller_has_given_up(ranked: Batch) -> None:
    answered = rerank(weight=1.0, below_events=2).run(dataclasses.replace(ranked, budget_s=0.0))
    np.testing.assert_array_equal(answered.codes_BK, ranked.codes_BK)
