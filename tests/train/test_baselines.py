import numpy as np
import polars as pl
import pytest

from train.models.baselines import ItemItem, Popularity
from train.vocabulary import UNKNOWN, Vocabulary

VOCABULARY = Vocabulary(("a", "b", "c", "d"), (), (), ())
NOTHING = np.array([], dtype=np.int64)


def events_of(*users: str) -> pl.DataFrame:
    rows = [(f"u{user}", item) for user, word in enumerate(users) for item in word]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


def asking(*histories: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"history_items": [list(history) for history in histories]}, schema={"history_items": pl.List(pl.String)}
    )


def test_popularity_is_the_number_of_events_ties_by_code() -> None:
    popularity = Popularity(events_of("cc", "cb", "db"), VOCABULARY)
    first, second = popularity.recommend(asking("", "c"), [NOTHING, np.array([3])], 4).tolist()
    assert first == [3, 2, 4, 1]
    assert second == [2, 4, 1, UNKNOWN]


def test_answers_do_not_remember_who_asked_before() -> None:
    popularity = Popularity(events_of("cc", "cb"), VOCABULARY)
    popularity.recommend(asking(""), [np.array([3])], 1)
    assert popularity.recommend(asking(""), [NOTHING], 1).tolist() == [[3]]


def test_item_item_sums_cosines_by_hand() -> None:
    # Users of a: 0, 1, 2; of b: 0, 1; of c: 2, 3; of d: 3. A repeated event counts once.
    baseline = ItemItem(events_of("abb", "ab", "ac", "cd"), VOCABULARY)
    cosine_ab, cosine_ac, cosine_cd = 2 / np.sqrt(3 * 2), 1 / np.sqrt(3 * 2), 1 / np.sqrt(2 * 1)
    assert cosine_ab > cosine_cd > cosine_ac
    answers = baseline.recommend(
        asking("a", "c", "bd", ""), [np.array([1]), np.array([3]), np.array([2, 4]), NOTHING], 3
    )
    assert answers.tolist() == [[2, 3, 4], [4, 1, 2], [1, 3, UNKNOWN], [1, 2, 3]]
    scores_II = np.zeros((5, 5))
    for one, two, cosine in ((1, 2, cosine_ab), (1, 3, cosine_ac), (3, 4, cosine_cd)):
        scores_II[one, two] = scores_II[two, one] = cosine
    np.testing.assert_allclose(baseline._cosines_II, scores_II, rtol=1e-6)


def test_strange_items_in_a_history_say_nothing() -> None:
    baseline = ItemItem(events_of("ab", "ab", "cd"), VOCABULARY)
    rows = pl.DataFrame({"history_items": [["stranger", "d"]]})
    assert baseline.recommend(rows, [np.array([4])], 1).tolist() == [[3]]


@pytest.mark.parametrize("kind", [Popularity, ItemItem])
def test_what_is_excluded_is_never_recommended(kind: type[Popularity | ItemItem]) -> None:
    baseline = kind(events_of("abcd", "ab", "cd"), VOCABULARY)
    exclude = [np.array([1, 2]), np.array([4]), np.array([1, 2, 3, 4])]
    answers = baseline.recommend(asking("ab", "d", "abcd"), exclude, 4)
    for answer, codes in zip(answers, exclude, strict=True):
        assert not set(answer.tolist()) & set(codes.tolist())
        assert sorted(set(answer.tolist()) - {UNKNOWN}) == [code for code in range(1, 5) if code not in codes]
