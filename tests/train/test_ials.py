from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.letters import NOTHING, asking, events_of, letters, random_words
from tests.train.test_ials_blocks import by_normal_equations
from train.models import ials_blocks
from train.models.ials import IALS, IALSConfig
from train.models.ials_blocks import in_process
from train.models.interactions import interactions

ALPHABET = "abcdefghijklmnop"
VOCABULARY = letters(ALPHABET + "!")
WORDS = random_words(60, ALPHABET)
CONFIG = IALSConfig(embedding_dim=5, iterations=3, unobserved_weight=0.2, regularization=0.02, history_half_life=None)


@pytest.fixture
def source() -> IALS:
    source = IALS(CONFIG, in_process)
    source.fit(events_of(*WORDS), VOCABULARY)
    return source


def loss(met_UI: np.ndarray, users_UD: np.ndarray, items_ID: np.ndarray) -> float:
    """Of Rendle et al., written down."""
    config = CONFIG
    scores_UI = users_UD @ items_ID.T
    users, items = len(met_UI), np.count_nonzero(met_UI.sum(axis=0))
    held_back_U = (met_UI.sum(axis=1) + config.unobserved_weight * items) ** config.frequency_exponent
    held_back_I = (met_UI.sum(axis=0) + config.unobserved_weight * users) ** config.frequency_exponent
    penalty = held_back_U @ (users_UD**2).sum(axis=1) + held_back_I @ (items_ID**2).sum(axis=1)
    observed = (met_UI * (1 - scores_UI) ** 2).sum()
    return float(observed + config.unobserved_weight * (scores_UI**2).sum() + config.regularization * penalty)


def test_it_alternates_between_dense_normal_equations(source: IALS) -> None:
    met_UI = interactions(events_of(*WORDS), VOCABULARY).toarray().astype(np.float64)
    generator = torch.Generator().manual_seed(CONFIG.seed)
    items_ID = torch.randn((met_UI.shape[1], 5), generator=generator).double().numpy() * 0.1 / np.sqrt(5)
    items_ID[met_UI.sum(axis=0) == 0] = 0
    items = np.count_nonzero(met_UI.sum(axis=0))
    losses = []
    for _ in range(CONFIG.iterations):
        users_UD = by_normal_equations(met_UI, items_ID, items, source.penalty)
        items_ID = by_normal_equations(met_UI.T, users_UD, len(met_UI), source.penalty)
        losses.append(loss(met_UI, users_UD, items_ID))
    np.testing.assert_allclose(source.weights()["items_ID"], items_ID, rtol=2e-3, atol=2e-4)
    assert losses == sorted(losses, reverse=True), "each half-step minimises the loss over its side"


def test_a_user_who_was_never_seen_is_folded_in(source: IALS) -> None:
    users_BD = source.fold_in(asking("ab", "", "!x"))
    items_ID = source.weights()["items_ID"].double().numpy()
    weights_BI = np.zeros((1, VOCABULARY.num_items + 1))
    weights_BI[0, [1, 2]] = 1
    expected = by_normal_equations(weights_BI, items_ID, len(ALPHABET), source.penalty)
    np.testing.assert_allclose(users_BD[0], expected[0], rtol=1e-3, atol=1e-5)
    assert not users_BD[1].any(), "nothing is known about who met nothing"


def test_the_newest_of_a_history_counts_most() -> None:
    source = IALS(CONFIG.model_copy(update={"history_half_life": 0.5}), in_process)
    source.fit(events_of(*WORDS), VOCABULARY)
    one, other = source.recommend(asking("apabpo", "poapab"), [NOTHING] * 2, 5)
    assert one.mean() > other.mean() + 3, "near o and p, near a and b"


def test_it_finds_who_goes_together() -> None:
    source = IALS(IALSConfig(embedding_dim=2), in_process)
    source.fit(events_of(*["abcd", "abc", "bcd", "acd", "mnop", "mno", "nop", "mop"] * 4), VOCABULARY)
    first, second = source.recommend(asking("ab", "no"), [np.array([1, 2]), np.array([14, 15])], 2).tolist()
    assert sorted(first) == [3, 4]
    assert sorted(second) == [13, 16]


def test_the_seed_decides(source: IALS) -> None:
    other = IALS(CONFIG.model_copy(update={"seed": 1}), in_process)
    other.fit(events_of(*WORDS), VOCABULARY)
    assert not np.allclose(other.weights()["items_ID"], source.weights()["items_ID"], atol=1e-3)


@pytest.mark.usefixtures("ray_session")
def test_workers_give_the_same_model(monkeypatch: pytest.MonkeyPatch, source: IALS) -> None:
    """Without a word, since there is a session."""
    monkeypatch.setattr(ials_blocks, "ROWS_AT_MOST", 20)
    here, there = IALS(CONFIG, in_process), IALS(CONFIG)
    here.fit(events_of(*WORDS), VOCABULARY)
    there.fit(events_of(*WORDS), VOCABULARY)
    np.testing.assert_array_equal(there.weights()["items_ID"], here.weights()["items_ID"])
    np.testing.assert_allclose(there.weights()["items_ID"], source.weights()["items_ID"], rtol=1e-2, atol=1e-4)


def test_who_is_folded_in_later_is_the_same(source: IALS, tmp_path: Path) -> None:
    source.save(tmp_path)
    np.testing.assert_array_equal(IALS.load(tmp_path).fold_in(asking("abp")), source.fold_in(asking("abp")))
