"""Retrieval, filter and ranking over the real models: order, ties, and nothing seen comes back."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data.dataset import Dataset
from data.features import ITEM_FEATURE_COLUMNS, ITEM_FEATURES, ITEM_POPULARITY, NEVER, TIME, with_item_share
from data.online.store import OnlineStore
from data.temporal.point_in_time import features_of
from serve.batch import Batch, Call, Stage
from serve.graph import RANKED, StageName
from serve.stages.filter import Filter
from serve.stages.ranking import NO_ITEM, Ranking
from serve.stages.retrieval import Retrieval
from serve.steps import run_stages
from serve.variant import Variant
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def through(stages: dict[StageName, Stage], last: StageName, *calls: Call, at: datetime = NOW) -> Batch:
    """A batch after the stages up to `last`."""
    names = RANKED[: RANKED.index(last) + 1]
    return run_stages([(name, stages[name]) for name in names], Batch(calls, at))


def test_retrieval_finds_enough_for_the_filter(shop_variant: Variant, shop_stages: dict[StageName, Stage]) -> None:
    done = through(shop_stages, "features", Call("d", "user 9", 5))
    assert done.seen[0]
    found = Retrieval(shop_variant, 10).run(done)
    (named,) = found.named_by
    assert list(named) == ["two_tower", "popularity", "item_item", "ease", "ials"]
    assert min(named.values()) > 0
    assert max(named.values()) <= 10 <= sum(named.values())
    kept = Filter(shop_variant.catalogue, 10).run(found)
    np.testing.assert_array_equal(kept.codes_BK, found.codes_BK)
    assert kept.codes_BK.shape == (1, 10)
    assert UNKNOWN not in kept.codes_BK
    assert (np.diff(kept.retrieval_BK) <= 0).all()


def test_the_filter_keeps_the_order_and_drops_what_was_seen(shop_variant: Variant) -> None:
    codes_BK = np.array([[5, 1, 2, 7], [3, 4, UNKNOWN, UNKNOWN]])
    scores_BK = np.array([[4, 3, 2, 1], [2, 1, -np.inf, -np.inf]], np.float32)
    seen = (frozenset({shop_variant.catalogue.item_id(1), "unknown"}), frozenset({shop_variant.catalogue.item_id(3)}))
    calls = (Call("a", "u", 5), Call("b", "v", 5))
    done = Filter(shop_variant.catalogue, 2).run(
        Batch(calls, NOW, seen=seen, codes_BK=codes_BK, retrieval_BK=scores_BK)
    )
    assert done.codes_BK.tolist() == [[5, 2], [4, UNKNOWN]]
    assert done.retrieval_BK.tolist() == [[4, 2], [1, -np.inf]]


def test_ranking_sorts_and_carries_everything_along(
    shop_stages: dict[StageName, Stage], shop_variant: Variant, shop_store: OnlineStore
) -> None:
    calls = (Call("a", "user 1", 5), Call("b", "nobody", 5))
    before = through(shop_stages, "filter", *calls)
    done = Ranking(shop_variant, shop_store).run(before)
    assert (done.scores_BK[:, 1:] <= done.scores_BK[:, :-1]).all()
    for row in range(2):
        assert dict(zip(done.codes_BK[row], done.retrieval_BK[row], strict=True)) == dict(
            zip(before.codes_BK[row], before.retrieval_BK[row], strict=True)
        )
    assert not np.array_equal(done.codes_BK, before.codes_BK)
    ids = [shop_variant.catalogue.item_id(code) for code in done.codes_BK[done.codes_BK != UNKNOWN]]
    assert done.item_features.filter(pl.col("item_id") != NO_ITEM)["item_id"].to_list() == ids


def test_item_features_are_those_of_the_events(shop_stages: dict[StageName, Stage], shop: Dataset) -> None:
    done = through(shop_stages, "ranking", Call("a", "nobody", 5))
    online = done.item_features.filter(pl.col("item_id") != NO_ITEM)
    keys = online.select("item_id").with_columns(
        pl.lit(NOW).cast(TIME).alias("event_time"), pl.lit(NEVER).alias("source_row")
    )
    counted = pl.lit(shop.manifest.events).alias("counted_events")
    offline = with_item_share(features_of([ITEM_POPULARITY], shop.events(), keys).with_columns(counted))
    assert_frame_equal(online.select(ITEM_FEATURES), offline.select(ITEM_FEATURES))
    assert online["item_event_count"].max() > 1


def test_ties_go_to_the_smaller_item_id_and_empty_slots_last(
    shop_stages: dict[StageName, Stage],
    shop_variant: Variant,
    shop_store: OnlineStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = through(shop_stages, "filter", Call("a", "user 11", 5))
    assert UNKNOWN in before.codes_BK
    monkeypatch.setattr(Variant, "rank", lambda *_, **__: np.ones_like(before.retrieval_BK))
    codes = Ranking(shop_variant, shop_store).run(before).codes_BK[0]
    filled = codes[codes != UNKNOWN]
    ids = [shop_variant.catalogue.item_id(code) for code in filled.tolist()]
    assert ids == sorted(ids)
    assert (codes[len(filled) :] == UNKNOWN).all()


def test_an_answer_does_not_depend_on_who_else_waits(shop_stages: dict[StageName, Stage]) -> None:
    calls = [Call(str(n), f"user {n}", 5, ("item-1",) * n) for n in range(12)] + [Call("x", "nobody", 5)]
    together = through(shop_stages, "ranking", *calls)
    for row, call in enumerate(calls):
        alone = through(shop_stages, "ranking", call)
        share = together.select([row])
        assert alone.codes_BK[0].tolist() == share.codes_BK[0].tolist()
        np.testing.assert_allclose(alone.scores_BK, share.scores_BK, rtol=1e-4, atol=1e-5)
        assert alone.item_features.equals(share.item_features)


def test_an_event_of_a_clock_that_is_ahead_counts_as_now(
    make_stages: Callable[[OnlineStore], dict[StageName, Stage]], shop: Dataset, own_store: OnlineStore
) -> None:
    event = shop.events()[:1].select(pl.exclude("source_row", "split", "ingest_time"))
    now = datetime.now(UTC)
    ahead = pl.lit(now + timedelta(minutes=1)).cast(TIME)
    own_store.append_events(event.with_columns(event_id=pl.lit("new"), event_time=ahead))
    done = through(make_stages(own_store), "ranking", Call("a", "nobody", 5), at=now)
    row = done.item_features.filter(pl.col("item_id") == event["item_id"][0])
    assert row["item_seconds_since_last"].to_list() == [0.0]
    assert np.isfinite(done.scores_BK[done.codes_BK != UNKNOWN]).all()


def test_a_version_published_between_two_reads_is_noticed(shop_stages: dict[StageName, Stage], shop: Dataset) -> None:
    done = through(shop_stages, "filter", Call("a", "nobody", 5))
    assert done.data_version == shop.manifest.data_version
    assert shop_stages["ranking"].run(done).data_version == shop.manifest.data_version
    older = dataclasses.replace(done, data_version="older")
    assert shop_stages["ranking"].run(older).data_version is None


def test_the_graph_answers_as_the_models_alone_do(
    shop_stages: dict[StageName, Stage],
    shop_variant: Variant,
    shop_retrieval: RetrievalModel,
    shop_ranking: RankingModel,
) -> None:
    """Search without what was seen, score, sort: the path that offline evaluation takes."""
    done = through(shop_stages, "ranking", *(Call(user, user, 5) for user in ("user 0", "user 6", "nobody")))
    exclude = [np.array([shop_variant.catalogue.code(item) for item in seen], np.int64) for seen in done.seen]
    found = shop_retrieval.find(done.users, exclude, 100)
    codes_BK, scores_BK = found.codes_BK, found.scores_BK
    features = {row["item_id"]: row for row in done.item_features.iter_rows(named=True)}
    ids = [[shop_variant.catalogue.item_id(code) if code else NO_ITEM for code in codes] for codes in codes_BK.tolist()]
    features_BKF = np.array(
        [[[features[item][name] for name in ITEM_FEATURE_COLUMNS] for item in row] for row in ids], np.float32
    )
    opinions = {"sources_BKS": found.sources_BKS}
    logits_BK = shop_ranking.score(done.users, codes_BK, scores_BK, features_BKF, shop_retrieval, **opinions)
    order_BK = np.argsort(-logits_BK, axis=1, kind="stable")
    for row in range(3):
        expected = codes_BK[row, order_BK[row]]
        assert done.codes_BK[row, : (expected != UNKNOWN).sum()].tolist() == expected[expected != UNKNOWN].tolist()
