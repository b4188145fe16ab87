"""What may not be recommended is not, and the rest of the catalogue fills its place."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from serve.batch import Batch, Call, Stage
from serve.eligibility import Eligibility, RulesConfig
from serve.graph import StageName
from serve.stages.diversity import Diversity
from serve.stages.fallbacks import Popularity
from serve.stages.filter import Filter, Limit
from serve.stages.retrieval import Retrieval
from serve.steps import run_stages
from serve.variant import Catalogue, Variant
from tests.serve.stages.test_ranking import NOW, through
from train.vocabulary import UNKNOWN, Vocabulary

Stages = dict[StageName, Stage]


def answered(variant: Variant, shop_stages: Stages, rules: RulesConfig, call: Call, width: int = 6) -> list[int]:
    """Codes after retrieval, filter and limit of so many candidates."""
    features = through(shop_stages, "features", call)
    stages = [
        ("retrieval", Retrieval(variant, width, rules)),
        ("filter", Filter(variant.catalogue, width, rules)),
    ]
    found = run_stages(stages, features)
    popular = Filter(variant.catalogue, width, rules).run(Popularity(variant, width, rules).run(features))
    assert (popular.codes_BK != UNKNOWN).sum() == (found.codes_BK != UNKNOWN).sum()
    found = Batch(
        found.calls, NOW, codes_BK=found.codes_BK, retrieval_BK=found.retrieval_BK, scores_BK=found.retrieval_BK
    )
    codes = Limit(variant.catalogue, rules).run(found).codes_BK[0]
    return [code for code in codes.tolist() if code != UNKNOWN]


def test_a_rule_on_an_attribute_leaves_as_many_items_as_were_wanted(shop_variant: Variant, shop_stages: Stages) -> None:
    rules = RulesConfig(require={"colour": ("red",)}, exclude={"size": ("0", "1")})
    codes = answered(shop_variant, shop_stages, rules, Call("a", "user 1", 6))
    assert len(codes) == 6
    assert all({"colour=red", "size=2"} <= set(shop_variant.catalogue.attributes(code)) for code in codes)


def test_lists_of_the_config_and_of_the_request(shop_variant: Variant, shop_stages: Stages) -> None:
    """Denied is denied, whoever allows it; the request chooses among what the config allows."""
    catalogue = shop_variant.catalogue
    rules = RulesConfig(allow=("item-1", "item-2", "item-3", "item-4"), deny=("item-2",))
    assert {catalogue.item_id(code) for code in answered(shop_variant, shop_stages, rules, Call("a", "new", 6))} == {
        "item-1",
        "item-3",
        "item-4",
    }
    call = Call("a", "new", 6, allow=("item-2", "item-3", "item-4", "item-9", "unknown"), deny=("item-4",))
    assert [catalogue.item_id(code) for code in answered(shop_variant, shop_stages, rules, call)] == ["item-3"]


def test_at_most_so_many_of_a_kind_and_as_many_as_can_be(shop_variant: Variant, shop_stages: Stages) -> None:
    rules = RulesConfig(max_per_value={"size": 2})
    codes = answered(shop_variant, shop_stages, rules, Call("a", "new", 6))
    sizes = [token for code in codes for token in shop_variant.catalogue.attributes(code) if token.startswith("size")]
    assert sorted(sizes) == ["size=0", "size=0", "size=1", "size=1", "size=2", "size=2"]


def windowed(*attributes: list[str]) -> Catalogue:
    ids = tuple(str(number) for number in range(len(attributes)))
    schema = {"item_id": pl.String, "title": pl.String, "attributes": pl.List(pl.String)}
    items = pl.DataFrame({"item_id": ids, "title": ids, "attributes": attributes}, schema=schema)
    return Catalogue(Vocabulary(ids, (), (), ()), items)


def test_an_item_is_recommended_while_it_is_available() -> None:
    catalogue = windowed(
        [], ["available_from=2024-06-01"], ["available_until=2024-07-01T12:00:00+02:00", "available_from=2024-01-01"]
    )
    eligibility = Eligibility(catalogue, RulesConfig())

    def closed(at: datetime) -> list[int]:
        (codes,) = eligibility.excluded(Batch((Call("a", "u", 1),), at, seen=(frozenset(),)))
        return codes.tolist()

    assert closed(datetime(2023, 12, 31, tzinfo=UTC)) == [2, 3]
    assert closed(datetime(2024, 5, 31, 23, 59, tzinfo=UTC)) == [2]
    assert closed(datetime(2024, 6, 1, tzinfo=UTC)) == []
    assert closed(datetime(2024, 7, 1, 10, tzinfo=UTC)) == [3]


def test_an_availability_that_cannot_be_read_is_named() -> None:
    with pytest.raises(TowerlineError, match=r"item '0': attribute available_until is 'soon', expected an ISO 8601"):
        Eligibility(windowed(["available_until=soon"]), RulesConfig())


def test_diversity_is_maximal_marginal_relevance(shop_variant: Variant, shop_stages: Stages) -> None:
    """Against the definition, item by item; with lambda 1 nothing moves."""
    calls = tuple(Call(str(n), user, 5) for n, user in enumerate(("user 1", "user 11", "nobody")))
    before = through(shop_stages, "ranking", *calls)
    assert Diversity(shop_variant, 1.0).run(before) is before
    after = Diversity(shop_variant, 0.4).run(before)
    for row in range(len(calls)):
        codes = before.codes_BK[row][before.codes_BK[row] != UNKNOWN]
        scores = before.scores_BK[row, : len(codes)]
        relevance = (scores - scores.min()) / (scores.max() - scores.min())
        vectors = shop_variant.directions(codes[np.newaxis])[0]
        chosen: list[int] = []
        for _ in range(5):
            values = {
                k: 0.4 * relevance[k] - 0.6 * max((float(vectors[k] @ vectors[c]) for c in chosen), default=0.0)
                for k in range(len(codes))
                if k not in chosen
            }
            chosen.append(max(values, key=lambda k: values[k]))
        assert after.codes_BK[row, :5].tolist() == codes[chosen].tolist()
        assert sorted(after.codes_BK[row]) == sorted(before.codes_BK[row])
        assert after.codes_BK[row, :5].tolist() != before.codes_BK[row, :5].tolist()
    features = after.item_features["item_id"].to_list()
    ids = [shop_variant.catalogue.item_id(code) if code else "" for code in after.codes_BK.ravel().tolist()]
    assert features == ids
