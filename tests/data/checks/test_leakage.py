"""Whoever looks at what he could not know is caught, and told where; who does not is left alone."""

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data import features
from data.aggregations import Count, Latest, Mean, Rate, RecencyWeighted, days, hours
from data.checks.leakage import Computation, check_leakage, lint_views
from data.temporal.point_in_time import features_at
from data.views import USER, FeatureView

MINE = pl.col("user_id") == pl.col("user_id_event")
BEFORE = (pl.col("event_time_event") < pl.col("event_time")) | (
    (pl.col("event_time_event") == pl.col("event_time")) & (pl.col("source_row_event") < pl.col("source_row"))
)
KNOWN = pl.col("ingest_time_event") <= pl.col("event_time")


def joined(seen: pl.Expr, value: pl.Expr) -> Computation:
    """A feature written by hand: `value` over all events that an example is said to see."""

    def by_hand(events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
        numbered = keys.with_row_index()
        pairs = numbered.join(events.rename(lambda name: f"{name}_event"), how="cross").filter(seen)
        found = pairs.group_by("index").agg(value.alias("feature"))
        return keys.hstack(numbered.join(found, on="index", how="left", maintain_order="left").select("feature"))

    return by_hand


def test_what_sees_only_the_known_past_is_left_alone() -> None:
    report = check_leakage(joined(MINE & BEFORE & KNOWN, pl.col("value_event").sum()))
    assert report.leaks == ()
    assert report.features == ("feature",)
    assert report.examples > 1_000
    report.require_none()


def test_an_examples_own_event_in_its_window_is_a_leak() -> None:
    is_until = pl.col("event_time_event") <= pl.col("event_time")
    (leak,) = check_leakage(joined(MINE & is_until & KNOWN, pl.len())).leaks
    assert leak.feature == "feature"
    assert "own event" in leak.change
    assert leak.events.height == 1


def test_a_mean_over_the_whole_table_is_a_leak() -> None:
    def share_of_mean(events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
        return keys.with_columns(pl.lit(events["value"].mean()).alias("feature"))

    (leak,) = check_leakage(share_of_mean).leaks
    assert leak.columns == ("value",)
    assert leak.events.height == 1


def test_event_time_where_ingest_time_is_needed_is_a_leak() -> None:
    (leak,) = check_leakage(joined(MINE & BEFORE, pl.col("value_event").mean())).leaks
    assert leak.change.startswith("events not ingested yet")
    assert leak.columns == ("value",)


def test_a_feature_made_of_the_label_is_a_leak() -> None:
    is_own = pl.col("source_row_event") == pl.col("source_row")
    target = joined(is_own, (pl.col("value_event") >= 4).any())
    report = check_leakage(target, label=pl.col("value") >= 4)
    (leak,) = report.leaks
    assert leak.change == "its own label"
    assert leak.columns == ("value",)
    with pytest.raises(
        TowerlineError, match=r"'feature' leaks: for user '\w+', item '\w' at 2024-.*its own label \(value\)"
    ):
        report.require_none()


def test_a_tie_in_time_is_not_the_past() -> None:
    is_before = pl.col("event_time_event") <= pl.col("event_time")
    is_other = pl.col("source_row_event") != pl.col("source_row")
    (leak,) = check_leakage(joined(MINE & is_before & is_other & KNOWN, pl.len())).leaks
    assert leak.change.startswith("later events")


@pytest.mark.parametrize("of_others", [pl.col("value").mean(), pl.col("value").shift(-1), pl.col("value").rank()])
def test_a_view_whose_column_is_not_about_one_event_is_a_leak(of_others: pl.Expr) -> None:
    view = FeatureView(
        name="leaky",
        entity=USER,
        features={"events": Count(), "above": Mean("above"), "last_above": Latest("above")},
        columns={"above": pl.col("value") - of_others},
        description="",
        owner="",
    )
    report = check_leakage(view)
    assert [leak.feature for leak in report.leaks] == ["above", "last_above"]
    with pytest.raises(TowerlineError, match="leaky: feature 'above' leaks: for user"):
        report.require_none()


def test_only_the_leaky_feature_is_named() -> None:
    honest = FeatureView(
        name="honest",
        entity=USER,
        features={"events": Count(days(1)), "last": Latest("item_id"), "weight": RecencyWeighted(days(1).length)},
        description="",
        owner="",
    )

    def mixed(events: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
        return features_at(honest, events, keys).with_columns(pl.lit(events.height).alias("of_all"))

    report = check_leakage(mixed)
    assert report.name == "mixed"
    assert [leak.feature for leak in report.leaks] == ["of_all"]
    assert report.leaks[0].columns == ()


def test_no_declared_view_leaks() -> None:
    declared = features.views(5)
    verdicts = lint_views(declared)
    assert verdicts["view"].to_list() == [view.name for view in declared]
    assert verdicts["leaks"].to_list() == [""] * len(declared)


PURCHASE = pl.col("event_type") == "purchase"


@pytest.mark.parametrize(
    "where",
    [
        PURCHASE,
        pl.col("event_type").is_in(["purchase", "refund"]) & (pl.col("value") > 100),
        PURCHASE & pl.col("user_id").str.starts_with("bot") & pl.col("value").is_between(-20, -10),
    ],
)
def test_a_leaky_view_of_rare_events_is_caught(where: pl.Expr) -> None:
    view = FeatureView(
        name="leaky",
        entity=USER,
        features={"events": Count(), "above": Mean("above")},
        columns={"above": pl.col("value") - pl.col("value").mean()},
        where=where,
        description="",
        owner="",
    )
    report = check_leakage(view)
    assert [leak.feature for leak in report.leaks] == ["above"]
    assert report.untested == ()


def test_a_feature_that_no_event_counts_for_was_not_tested() -> None:
    view = FeatureView(
        name="rare",
        entity=USER,
        features={"events": Count(), "above": Mean("above"), "of_ever": Latest("value", default=7.0)},
        columns={"above": pl.col("value") - pl.col("value").mean()},
        where=pl.col("user_id").str.len_chars() > 1_000,
        description="",
        owner="",
    )
    report = check_leakage(view)
    assert (report.leaks, report.untested) == ((), ("events", "above", "of_ever"))
    message = "nothing was tested: feature 'events' is its default everywhere"
    with pytest.raises(TowerlineError, match=f"rare: {message}.*; generate more"):
        report.require_none()
    assert message in lint_views([view])["leaks"].item()


def test_windows_of_an_hour_are_tested() -> None:
    view = FeatureView(
        name="short", entity=USER, features={"n": Count(hours(1)), "r": Rate(hours(2))}, description="", owner=""
    )
    check_leakage(view).require_none()
