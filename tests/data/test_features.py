"""The declared views: what models read has not changed its name or meaning; fingerprints follow what decides values."""

import dataclasses
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data import features
from data.aggregations import Count, LastN, days
from data.temporal.point_in_time import features_at, features_of
from data.views import ENTITIES, USER, FeatureView, views_of
from tests.data.temporal.test_point_in_time import NEVER, check, events_of, keys_of

DAY_US = 86_400_000_000

EVENTS = events_of(
    [
        ("anna", "x", 4.0, 0, 0),
        ("anna", "y", 5.0, DAY_US, 0),
        ("boris", "x", 1.0, 2 * DAY_US, 0),
        ("anna", "x", 3.0, 9 * DAY_US, 5 * DAY_US),
    ]
)


def test_every_feature_has_one_name_and_a_description() -> None:
    views = features.views()
    names = [name for view in views for name in view.features]
    assert len(names) == len(set(names))
    assert {view.entity for view in views} == set(ENTITIES)
    assert all(view.description and view.owner for view in views)


def test_the_columns_are_those_of_the_views() -> None:
    assert tuple(name for view in views_of(USER, features.views()) for name in view.features) == features.USER_FEATURES
    assert set(features.ITEM_FEATURE_COLUMNS) < set(features.ITEM_FEATURES)
    assert features.ITEM_FEATURES[-1] == "item_share"


def test_user_features_as_of_a_moment() -> None:
    user = features.user_activity(history_length=2)
    rows = features_at(user, EVENTS, keys_of([("anna", 9 * DAY_US, NEVER), ("nobody", 0, 0)])).to_dicts()
    assert rows[0] | {"history_times": None, "event_time": None} == {
        "user_id": "anna",
        "event_time": None,
        "source_row": NEVER,
        "history_items": ["x", "y"],
        "history_values": [4.0, 5.0],
        "history_types": ["click", "click"],
        "history_times": None,
        "user_event_count": 2,
        "user_mean_value": 4.5,
        "user_seconds_since_last": 8 * 86_400.0,
        "user_events_1h": 0,
        "user_events_1d": 0,
        "user_events_7d": 0,
        "user_mean_value_30d": 4.5,
        "user_distinct_items_30d": 2,
        "user_recent_weight": pytest.approx(2 ** -(9 / 7) + 2 ** -(8 / 7)),
    }
    assert [rows[1][name] for name in user.features] == [[], [], [], [], *[0] * 9]


def test_items_and_their_share() -> None:
    keys = keys_of([("x", 3 * DAY_US, NEVER), ("z", 3 * DAY_US, NEVER), ("x", 0, 0)], "item_id")
    of_items = features_at(features.ITEM_POPULARITY, EVENTS, keys)
    of_all = features_at(features.ALL_ACTIVITY, EVENTS, keys).select(features.COUNTED_EVENTS)
    rows = features.with_item_share(of_items.hstack(of_all))
    assert rows["item_event_count"].to_list() == [2, 0, 0]
    assert rows["item_mean_value"].to_list() == [2.5, 0.0, 0.0]
    assert rows["item_seconds_since_last"].to_list() == [86_400.0, 0.0, 0.0]
    assert rows["item_share"].to_list() == [pytest.approx(2 / 3), 0.0, 0.0]
    assert rows.schema["item_share"] == pl.Float32


def test_all_views_of_an_entity_equal_the_definition() -> None:
    for view in features.views(3):
        key = view.entity.key
        keys = EVENTS.select(*([key] if key else []), "event_time", "source_row")
        exact = dataclasses.replace(
            view, features={name: each for name, each in view.features.items() if not name.endswith("_recent_weight")}
        )
        check(exact, EVENTS, keys)
        assert_frame_equal(
            features_of((view,), EVENTS, keys).select(*exact.features),
            features_of((exact,), EVENTS, keys).select(*exact.features),
        )


def test_fingerprints_follow_definition_and_parameters() -> None:
    ten, twenty = features.feature_fingerprints(10), features.feature_fingerprints(20)
    assert ten == features.feature_fingerprints(10)
    assert ten["user_activity"] != twenty["user_activity"]
    assert ten["item_popularity"] == twenty["item_popularity"]


@pytest.mark.parametrize(
    "change",
    [
        {"features": {"a": Count(days(2)), "b": LastN("item_id", 3)}},
        {"where": pl.col("event_type").is_in(["seen"] * 30 + ["bought"] + ["seen"] * 30)},
        {"columns": {"half": pl.col("value") / 2}},
        {"ttl": timedelta(days=1)},
        {"name": "other"},
    ],
)
def test_a_changed_definition_is_another_version(change: dict[str, Any]) -> None:
    view = FeatureView(
        name="view",
        entity=USER,
        features={"a": Count(days(1)), "b": LastN("item_id", 3)},
        description="one",
        owner="somebody",
        where=pl.col("event_type").is_in(["seen"] * 61),
    )
    assert dataclasses.replace(view, **change).fingerprint() != view.fingerprint()
    assert dataclasses.replace(view, owner="somebody else", description="two").fingerprint() == view.fingerprint()
    assert view.fingerprint("code") != view.fingerprint("other code")


def test_sequence_is_the_rank_in_the_total_order() -> None:
    shuffled = events_of([("a", "x", 1.0, 5, 0), ("b", "x", 1.0, 3, 0), ("c", "x", 1.0, 5, 0)])
    ordered = features.with_sequence(shuffled)
    assert ordered["user_id"].to_list() == ["b", "a", "c"]
    assert ordered["sequence"].to_list() == [0, 1, 2]
