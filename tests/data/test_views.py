"""A view says what it needs, what it gives and what is wrong with it."""

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.aggregations import Count, Distinct, LastN, Latest, Mean, Rate, RecencyWeighted, TimeSince, days
from data.views import EVERYTHING, ITEM, USER, FeatureView, views_of

FEATURES = {
    "events": Count(),
    "delight": Mean("liked", days(7)),
    "rate": Rate(days(1)),
    "variety": Distinct("item_id"),
    "items": LastN("item_id", 3),
    "since": TimeSince(),
    "kind": Latest("event_type"),
    "was_liked": Latest("liked"),
}


def view_of(**options: Any) -> FeatureView:
    defaults = {
        "name": "taste",
        "entity": USER,
        "features": FEATURES,
        "description": "",
        "owner": "",
        "columns": {"liked": pl.col("value") >= 4},
        "where": pl.col("event_type") == "rating",
    }
    return FeatureView(**defaults | options)


def test_types_of_features() -> None:
    assert view_of().schema() == {
        "events": pl.Int64,
        "delight": pl.Float32,
        "rate": pl.Float32,
        "variety": pl.Int64,
        "items": pl.List(pl.String),
        "since": pl.Float64,
        "kind": pl.String,
        "was_liked": pl.Boolean,
    }
    assert [name for name in FEATURES if not view_of().is_scalar(name)] == ["items", "kind"]


def test_lineage_names_the_columns_of_the_source() -> None:
    view = view_of()
    always = {"event_time", "ingest_time", "source_row", "user_id", "event_type"}
    assert set(view.lineage("events")) == always
    assert set(view.lineage("delight")) == always | {"value"}
    assert set(view.lineage("items")) == always | {"item_id"}
    assert "user_id" not in view_of(entity=EVERYTHING).lineage("events")


def test_views_of_an_entity() -> None:
    one, two, three = view_of(name="one"), view_of(name="two", entity=ITEM), view_of(name="three")
    assert views_of(USER, (one, two, three)) == (one, three)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": {"a": Mean("valu")}}, r"feature 'a' of view 'taste': no column 'valu' \(there are: .*value"),
        ({"where": pl.col("kind") == "x"}, "where reads 'kind', which is no column of events"),
        ({"columns": {"liked": pl.col("stars") > 3}}, "liked reads 'stars', which is no column of events"),
        ({"features": {"a": Mean("item_id")}}, "'a' of view 'taste' adds up column 'item_id', which is String"),
        ({"features": {"a": RecencyWeighted(timedelta(days=1), "event_time")}}, "adds up column 'event_time'"),
        ({"features": {"value": Count()}}, "'value' of view 'taste' is called like a column of events"),
        ({"ttl": timedelta()}, "a time to live of 0:00:00 is not positive"),
    ],
)
def test_what_is_wrong_with_a_view(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        view_of(**options)


def test_only_events_that_count_are_prepared() -> None:
    events = pl.DataFrame({"event_type": ["rating", "click", None], "value": [5.0, 5.0, 1.0]})
    assert view_of().prepared(events).to_dicts() == [{"event_type": "rating", "value": 5.0, "liked": True}]
