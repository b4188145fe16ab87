import numpy as np

from train.models.softmax_regression import fit_softmax_regression


def test_known_weights_are_found_again() -> None:
    random = np.random.default_rng(0)
    true_F = np.array([1.5, -0.7, 0.0])
    signals = random.standard_normal((4000, 8, 3))
    present = random.random((4000, 8)) < 0.9
    present[:, 0] = True
    gumbel = random.gumbel(size=(4000, 8))
    picked = np.where(present, signals @ true_F + gumbel, -np.inf).argmax(axis=1)
    chosen = np.zeros((4000, 8), dtype=bool)
    chosen[np.arange(4000), picked] = True
    found_F = fit_softmax_regression(signals, present, chosen, l2=0.0)
    np.testing.assert_allclose(found_F, true_F, atol=0.1)


def test_the_slope_is_zero_at_the_answer() -> None:
    """Numerically, from the definition of the loss, with several chosen and one list that says nothing."""
    random = np.random.default_rng(1)
    signals = random.standard_normal((30, 5, 2))
    present = np.ones((30, 5), dtype=bool)
    chosen = random.random((30, 5)) < 0.3
    chosen[0] = False
    chosen[1:, 0] = True

    def loss(weights_F: np.ndarray) -> float:
        logits = signals @ weights_F
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-logs[chosen].mean() + 3.0 / 29 / 2 * (weights_F**2).sum())

    found_F = fit_softmax_regression(signals, present, chosen, l2=3.0)
    for axis in np.eye(2):
        slope = (loss(found_F + 1e-4 * axis) - loss(found_F - 1e-4 * axis)) / 2e-4
        assert abs(slope) < 1e-4
