import numpy as np
import polars as pl
import pytest
import scipy.sparse

from train.models.covisitation import PRIOR_EVENTS, RECENT, WINDOW, covisitation_of, fit_covisitation
from train.vocabulary import UNKNOWN, Vocabulary

VOCABULARY = Vocabulary(tuple("abcdefghijklmnopqrst"), (), (), ())


def events_of(*users: str) -> pl.DataFrame:
    """Each user's items as a word; the users' events come in turn."""
    rows = [
        (f"u{user}", item, step * len(users) + user)
        for user, word in enumerate(users)
        for step, item in enumerate(word)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "sequence"], orient="row")


def test_pairs_by_hand() -> None:
    matrix = fit_covisitation(events_of("ab", "acb"), VOCABULARY).toarray()
    a, b, c = 1, 2, 3
    assert matrix[a, b] == pytest.approx(2 / (2 + PRIOR_EVENTS))
    assert matrix[a, c] == pytest.approx(1 / np.sqrt((2 + PRIOR_EVENTS) * (1 + PRIOR_EVENTS)))
    assert matrix[b, c] == matrix[c, b] == matrix[a, c]
    assert matrix[a, a] == 0
    assert matrix.sum() == pytest.approx(2 * (matrix[a, b] + matrix[a, c] + matrix[b, c]))


def test_only_pairs_within_the_window_count() -> None:
    word = VOCABULARY.items[: WINDOW + 2]
    matrix = fit_covisitation(events_of("".join(word)), VOCABULARY).toarray()
    assert matrix[1, 1 + WINDOW] > 0
    assert matrix[1, 2 + WINDOW] == 0


def test_users_are_not_paired_and_the_order_of_rows_is_of_no_matter() -> None:
    events = events_of("abcd", "efga", "hb")
    matrix = fit_covisitation(events, VOCABULARY)
    assert matrix[[1], [5]] > 0
    assert matrix.toarray()[5, 2] == 0
    shuffled = fit_covisitation(events.sample(fraction=1, shuffle=True, seed=1), VOCABULARY)
    assert (shuffled != matrix).nnz == 0


def test_many_events_equal_a_loop() -> None:
    random = np.random.default_rng(0)
    users = ["".join(random.choice(VOCABULARY.items, random.integers(1, 25))) for _ in range(15)]
    counts = np.zeros((21, 21))
    events = np.zeros(21)
    for word in users:
        codes = [VOCABULARY.item_code(item) for item in word]
        for place, code in enumerate(codes):
            events[code] += 1
            for other in codes[place + 1 : place + 1 + WINDOW]:
                counts[code, other] += 1
                counts[other, code] += 1
    expected = counts / np.sqrt(np.outer(events + PRIOR_EVENTS, events + PRIOR_EVENTS))
    np.testing.assert_allclose(fit_covisitation(events_of(*users), VOCABULARY).toarray(), expected, rtol=1e-5)


@pytest.mark.parametrize("length", [3, RECENT, RECENT + 5])
def test_recent_events_vouch_with_the_most_weight(length: int) -> None:
    random = np.random.default_rng(length)
    dense = random.random((21, 21)).astype(np.float32)
    history_BL = random.integers(0, 21, (30, length))
    history_BL[0] = UNKNOWN
    candidates_BK = random.integers(1, 21, (30, 6))
    found_BK = covisitation_of(scipy.sparse.csr_array(dense), history_BL, candidates_BK)
    for row in range(30):
        newest_first = history_BL[row][::-1][:RECENT]
        for place, candidate in enumerate(candidates_BK[row]):
            expected = sum(
                (RECENT - back) * dense[code, candidate] for back, code in enumerate(newest_first) if code != UNKNOWN
            )
            assert found_BK[row, place] == pytest.approx(expected, rel=1e-5)
    assert found_BK[0].tolist() == [0] * 6
    assert found_BK.dtype == np.float32
