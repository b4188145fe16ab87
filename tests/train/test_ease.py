import numpy as np
import pytest

from cluster.errors import TowerlineError
from tests.train.letters import asking, events_of, letters, random_words
from train.models import ease
from train.models.ease import EASE, EASEConfig, solve
from train.models.interactions import interactions
from train.vocabulary import Vocabulary

ALPHABET = "abcdefghijkl"
WORLD = interactions(events_of(*random_words(50, ALPHABET)), letters(ALPHABET + "!"))


def loss(weights_II: np.ndarray, regularization: float) -> float:
    met_UI = WORLD.toarray().astype(np.float64)
    return float(((met_UI - met_UI @ weights_II) ** 2).sum() + regularization * (weights_II**2).sum())


@pytest.mark.parametrize("regularization", [0.5, 20.0, 500.0])
def test_it_solves_the_constrained_problem(regularization: float) -> None:
    """The Lagrangian's conditions: off the diagonal the gradient is zero, on it B is."""
    weights_II = solve(WORLD, regularization).astype(np.float64)
    met_UI = WORLD.toarray().astype(np.float64)
    gram_II = met_UI.T @ met_UI
    gradient_II = gram_II @ weights_II + regularization * weights_II - gram_II
    np.fill_diagonal(gradient_II, 0)
    np.testing.assert_array_equal(np.diag(weights_II), 0)
    np.testing.assert_allclose(gradient_II, 0, atol=2e-5)


def test_each_column_is_a_ridge_regression_on_the_other_items() -> None:
    weights_II = solve(WORLD, 10.0)
    met_UI = WORLD.toarray().astype(np.float64)
    for item in range(1, len(ALPHABET) + 1):
        others = np.delete(np.arange(met_UI.shape[1]), item)
        rest = met_UI[:, others]
        expected = np.linalg.solve(rest.T @ rest + 10.0 * np.eye(len(others)), rest.T @ met_UI[:, item])
        np.testing.assert_allclose(weights_II[others, item], expected, atol=1e-6)


def test_no_other_weights_have_a_lower_loss() -> None:
    weights_II = solve(WORLD, 10.0).astype(np.float64)
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.3):
        other_II = weights_II + size * random.standard_normal(weights_II.shape)
        np.fill_diagonal(other_II, 0)
        assert loss(other_II, 10.0) > loss(weights_II, 10.0)


def test_the_gram_matrix_may_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = solve(WORLD, 10.0)
    monkeypatch.setattr(ease, "ROWS_AT_ONCE", 5)
    np.testing.assert_array_equal(solve(WORLD, 10.0), expected)


def test_scores_are_the_weighted_history_times_the_weights() -> None:
    source = EASE(EASEConfig(regularization=1.0, history_half_life=1.0))
    source.fit(events_of("ab", "abc", "bc", "ca"), letters("abc"))
    weights_II = solve(interactions(events_of("ab", "abc", "bc", "ca"), letters("abc")), 1.0)
    expected = 0.5 * weights_II[1] + weights_II[2]
    np.testing.assert_allclose(source.scores(asking("ab"))[0, 1:], expected[1:], rtol=1e-6)


def test_a_catalogue_that_does_not_fit_is_refused_before_anything_is_built() -> None:
    many = Vocabulary(tuple(str(number) for number in range(60_000)), (), (), ())
    with pytest.raises(TowerlineError) as caught:
        EASE().fit(events_of("12", "23"), many)
    assert str(caught.value) == (
        "EASE needs 67.1 GiB for 60,000 items, memory_limit_gib is 4 (14,653 items); raise it, or use item_item or "
        "ials, whose memory grows with the events"
    )


def test_the_limit_is_the_largest_catalogue_that_is_let_through() -> None:
    config = EASEConfig(memory_limit_gib=ease.BYTES_PER_PAIR * 4**2 / 2**30)
    EASE(config).fit(events_of("ab", "bc"), letters("abc"))
    with pytest.raises(TowerlineError, match=r"\(3 items\)"):
        EASE(config).fit(events_of("ab", "bc"), letters("abcd"))
