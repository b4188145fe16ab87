import numpy as np
import polars as pl
import pytest

from data.offline.store import read_examples
from data.splits import TEST, protocol_hash
from tests.train.conftest import DonePath
from tests.train.planted import Planted
from train.candidates import ItemFeatures
from train.evaluation import PROTOCOL, Codes, RankedRecommender, Recommender, TwoTowerRecommender, evaluate
from train.models.baselines import Popularity
from train.models.ranking import RankingModel
from train.vocabulary import UNKNOWN, Vocabulary


class Told:
    """Answers what it was told and remembers what it was asked."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.answers = answers
        self.asked: dict[str, tuple[set[int], int]] = {}

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        for user, codes in zip(rows["user_id"], exclude, strict=True):
            self.asked[user] = (set(codes.tolist()), count)
        return np.array([self.answers[user] for user in rows["user_id"]])


@pytest.fixture(scope="module")
def examples(planted: Planted) -> pl.DataFrame:
    return read_examples(planted.folder)


@pytest.fixture
def four_users() -> tuple[pl.DataFrame, Vocabulary]:
    vocabulary = Vocabulary(("a", "b", "c", "d", "e"), (), (), ())
    histories = {"one": "abc", "two": "deb", "three": "cad", "four": "bce"}
    rows = [
        (user, item, number * 3 + place, ["train", "validation", "test"][place])
        for number, (user, word) in enumerate(histories.items())
        for place, item in enumerate(word)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "sequence", "split"], orient="row"), vocabulary


def test_figures_by_hand(four_users: tuple[pl.DataFrame, Vocabulary]) -> None:
    examples, vocabulary = four_users
    told = Told({"one": [3, 4, 5], "two": [1, 3, 2], "three": [2, 5, UNKNOWN], "four": [5, 1, 4]})
    evaluation = evaluate({"told": told}, examples, vocabulary)
    assert evaluation.users == 4
    assert evaluation.figures == pytest.approx(
        {
            "recall@10/told": 3 / 4,
            "ndcg@10/told": (1 + 1 / 2 + 0 + 1) / 4,
            "mrr/told": (1 + 1 / 3 + 0 + 1) / 4,
            "coverage@10/told": 5 / 5,
        }
    )


def test_what_came_before_is_masked_and_the_whole_catalogue_asked_for(
    four_users: tuple[pl.DataFrame, Vocabulary],
) -> None:
    examples, vocabulary = four_users
    told = Told({user: [1, 2, 3] for user in ("one", "two", "three", "four")})
    evaluate({"told": told}, examples, vocabulary)
    assert told.asked == {"one": ({1, 2}, 5), "two": ({4, 5}, 5), "three": ({3, 1}, 5), "four": ({2, 3}, 5)}


def test_every_figure_has_its_protocol(path: DonePath) -> None:
    assert path.evaluation.protocol == PROTOCOL
    assert path.evaluation.protocol_hash == protocol_hash(PROTOCOL)
    assert "last event is the test" in path.evaluation.protocol
    names = {f"{metric}/{model}" for metric in ("recall@10", "ndcg@10", "mrr", "coverage@10") for model in MODELS}
    assert set(path.evaluation.figures) == names
    assert all(0 <= value <= 1 for value in path.evaluation.figures.values())


MODELS = ("popularity", "item_item", "two_tower", "two_tower_ranker")


def test_models_are_as_good_as_what_they_can_learn(path: DonePath) -> None:
    """Popularity knows no groups, item-item knows groups but no order, the two-tower knows both."""
    popularity, item_item, two_tower, ranker = (path.evaluation.figures[f"ndcg@10/{model}"] for model in MODELS)
    assert item_item > 3 * popularity
    assert two_tower > 1.1 * item_item
    assert ranker >= two_tower
    assert path.evaluation.figures["recall@10/two_tower"] > 0.95


def test_recommenders_keep_to_what_is_allowed(path: DonePath, examples: pl.DataFrame, planted: Planted) -> None:
    retrieval, ranking = path.retrieval.model, path.ranking.model
    rows = examples.filter(pl.col("split") == TEST)[:30]
    items = ItemFeatures(planted.dataset.events(), retrieval.vocabulary)
    everything = retrieval.vocabulary.num_items
    random = np.random.default_rng(0)
    exclude = [random.choice(everything, 40, replace=False) + 1 for _ in range(30)]
    recommenders: list[Recommender] = [
        Popularity(examples, retrieval.vocabulary),
        TwoTowerRecommender(retrieval),
        RankedRecommender(retrieval, ranking, items, 10),
    ]
    for recommender in recommenders:
        answers = recommender.recommend(rows, exclude, everything)
        assert answers.shape == (30, everything)
        for answer, codes in zip(answers.tolist(), exclude, strict=True):
            allowed = set(range(1, everything + 1)) - set(codes.tolist())
            assert set(answer[: everything - 40]) == allowed, "each allowed item once, before the padding"
            assert answer[everything - 40 :] == [UNKNOWN] * 40


def test_the_ranker_reorders_the_first_candidates_and_nothing_else(
    path: DonePath, examples: pl.DataFrame, planted: Planted
) -> None:
    retrieval = path.retrieval.model
    rows = examples.filter(pl.col("split") == TEST)[:50]
    items = ItemFeatures(planted.dataset.events(), retrieval.vocabulary)
    exclude = [np.array([], dtype=np.int64)] * 50
    plain = TwoTowerRecommender(retrieval).recommend(rows, exclude, 40)
    ranked = RankedRecommender(retrieval, path.ranking.model, items, 10).recommend(rows, exclude, 40)
    np.testing.assert_array_equal(ranked[:, 10:], plain[:, 10:])
    np.testing.assert_array_equal(np.sort(ranked[:, :10]), np.sort(plain[:, :10]))
    assert (ranked[:, :10] != plain[:, :10]).mean() > 0.1
    short = RankedRecommender(retrieval, path.ranking.model, items, 10).recommend(rows, exclude, 3)
    np.testing.assert_array_equal(short, ranked[:, :3])


def test_an_untrained_ranker_is_as_good_as_retrieval(path: DonePath, examples: pl.DataFrame, planted: Planted) -> None:
    import torch

    trained = path.ranking.model
    retrieval = path.retrieval.model
    weights = trained.network.state_dict() | {"output.weight": torch.zeros_like(trained.network.output.weight)}
    untrained = RankingModel(trained.config, trained.vocabulary, weights)
    items = ItemFeatures(planted.dataset.events(), retrieval.vocabulary)
    evaluation = evaluate(
        {"ranked": RankedRecommender(retrieval, untrained, items, 20)}, examples, retrieval.vocabulary
    )
    assert evaluation.figures["ndcg@10/ranked"] == path.evaluation.figures["ndcg@10/two_tower"]
