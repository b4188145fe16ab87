"""Facts come from the features and the catalogue, fit the prompt, and are true."""

from datetime import UTC, datetime

import polars as pl

from serve.batch import Batch, Call, Stage
from serve.graph import RANKED, StageName
from serve.stages.facts import MAX_NAME, MAX_TRAIT, GatherFacts
from serve.steps import run_stages
from serve.variant import Catalogue, Variant
from train.vocabulary import Vocabulary

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def facts_of(stages: dict[StageName, Stage], *calls: Call) -> Batch:
    return run_stages([(name, stages[name]) for name in (*RANKED, "facts")], Batch(calls, NOW))


def test_facts_are_true(shop_stages: dict[StageName, Stage], shop_variant: Variant, shop_events: pl.DataFrame) -> None:
    done = facts_of(shop_stages, Call("a", "user 7", 5, explain=True), Call("b", "nobody", 2, explain=True))
    catalogue = shop_variant.catalogue
    assert [len(facts) for facts in done.facts] == [3, 2]
    history = set(done.users["history_items"][0])
    names = {catalogue.title(catalogue.code(item)) or item for item in history}
    for place, fact in enumerate(done.facts[0]):
        assert fact.code == done.codes_BK[0, place]
        item_id = catalogue.item_id(fact.code)
        assert fact.item == (catalogue.title(fact.code) or item_id)
        assert fact.chosen
        assert set(fact.chosen) <= names
        own = {token.partition("=")[2] for token in catalogue.attributes(fact.code)}
        assert set(fact.traits) <= own
        stored = shop_events.filter(pl.col("item_id") == item_id).height
        assert fact.people >= stored
    assert all(fact.chosen == () and fact.traits for fact in done.facts[1])


def test_only_the_items_that_were_asked_for_get_facts(shop_stages: dict[StageName, Stage]) -> None:
    assert [len(facts) for facts in facts_of(shop_stages, Call("a", "user 7", 1, explain=True)).facts] == [1]


def test_names_are_one_printable_line_of_bounded_size() -> None:
    items = pl.DataFrame(
        {
            "item_id": ["1", "2"],
            "title": ["A\n\x00 title \u202e" + "千" * 100, "\n"],
            "attributes": [["kind=" + "x" * 100], ["bare token"]],
        },
        schema={"item_id": pl.String, "title": pl.String, "attributes": pl.List(pl.String)},
    )
    catalogue = Catalogue(Vocabulary(("1", "2"), (), (), ()), items)
    users = pl.DataFrame({"history_items": [["2"]], "history_values": [[1.0]], "user_mean_value": [1.0]})
    codes = pl.Series([1]).to_numpy().reshape(1, 1)
    batch = Batch(
        (Call("a", "u", 1),), NOW, users=users, codes_BK=codes, item_features=pl.DataFrame({"item_event_count": [1]})
    )
    ((fact,),) = GatherFacts(catalogue, 1).run(batch).facts
    assert fact.item.startswith("A title 千")
    assert fact.item.isprintable()
    assert len(fact.item.encode()) <= MAX_NAME
    assert fact.chosen == ("?",)
    plain = GatherFacts(catalogue, 1).run(
        Batch(
            batch.calls,
            NOW,
            users=users.with_columns(
                history_items=pl.lit([], dtype=pl.List(pl.String)), history_values=pl.lit([], dtype=pl.List(pl.Float64))
            ),
            codes_BK=codes,
            item_features=batch.item_features,
        )
    )
    assert len(plain.facts[0][0].traits[0].encode()) <= MAX_TRAIT
