"""Features in a notebook: any moment, any view, from the data set and from what the online store was told since."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.aggregations import Count, Mean
from data.dataset import Dataset, write_dataset
from data.feature_client import Features
from data.features import ITEM_FEATURES, NEVER, TIME, USER_FEATURES, user_activity
from data.online.store import open_online_store
from data.quality.validation import polars_schema
from data.schema import EVENTS, ITEMS, QUARANTINE, USERS
from data.temporal.point_in_time import features_of
from data.views import ITEM, USER, FeatureView

START = datetime(2024, 5, 1, tzinfo=UTC)
LATE = timedelta(hours=5)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def dataset(settings: Settings) -> Dataset:
    """60 users with 20 events each, one an hour; every seventh became known five hours late."""
    rows = 1200
    events = pl.DataFrame({"source_row": range(rows)}, schema={"source_row": pl.Int64}).with_columns(
        event_id=pl.format("e{}", "source_row"),
        user_id=pl.format("user {}", pl.col("source_row") % 60),
        item_id=pl.format("item/{}", pl.col("source_row") * 7 % 40),
        event_type=pl.lit("view"),
        value=(pl.col("source_row") % 5 + 0.5).cast(pl.Float32),
        event_time=(pl.lit(START) + pl.duration(hours=pl.col("source_row") // 60)).cast(TIME),
        decision_id=pl.lit(None, dtype=pl.String),
    )
    late = pl.when(pl.col("source_row") % 7 == 0).then(pl.lit(LATE)).otherwise(pl.lit(timedelta()))
    events = events.with_columns(ingest_time=pl.col("event_time") + late)
    users = pl.DataFrame({"user_id": ["user 3"], "attributes": [["age=9"]]}, schema=polars_schema(USERS))
    return write_dataset(
        settings.home,
        "clicks",
        events=events.select(EVENTS.names),
        items=pl.DataFrame(schema=polars_schema(ITEMS)),
        users=users,
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )


@pytest.fixture
def features(settings: Settings, dataset: Dataset) -> Features:  # noqa: ARG001
    return Features(settings=settings)


def test_users_at_moments_are_what_the_join_gives(features: Features, dataset: Dataset) -> None:
    """Each user at a moment of its own; events that were known too late do not count."""
    users = ["user 7", "user 3", "user 7"]
    moments = [START + timedelta(hours=hours, seconds=1) for hours in (3, 30, 11)]
    keys = pl.DataFrame({"user_id": users, "event_time": moments}, schema={"user_id": pl.String, "event_time": TIME})
    expected = features_of([user_activity()], dataset.events(), keys.with_columns(source_row=pl.lit(NEVER)))
    found = features.at(users, moments)
    assert_frame_equal(found.select(USER_FEATURES), expected.select(USER_FEATURES))
    assert found["user_id"].to_list() == users
    assert found["event_time"].to_list() == moments
    assert found["known"].to_list() == [True] * 3
    assert found["user_attributes"].to_list() == [[], ["age=9"], []]
    assert found["user_event_count"].to_list() == [3, 20, 11]


def test_one_user_one_moment_and_text(features: Features) -> None:
    once = features.at("user 1", "2024-05-01T04:00:00+02:00")
    assert once["user_event_count"].to_list() == [3]
    for same in ("2024-05-01T02:00:00", "2024-05-01 02:00:00Z", datetime(2024, 5, 1, 2), START + timedelta(hours=2)):
        assert_frame_equal(features.at(["user 1"], same), once)


def test_nobody_is_known_before_their_first_event(features: Features) -> None:
    before, nobody = features.at(["user 1", "nobody"], "2024-04-30").rows(named=True)
    assert (before["known"], before["user_event_count"], before["history_items"]) == (False, 0, [])
    assert (nobody["known"], nobody["user_event_count"], nobody["history_items"]) == (False, 0, [])
    assert features.at("user 0", START).item(0, "known") is False
    assert features.at("user 0", START + LATE).item(0, "known") is True


def test_items_at_a_moment_come_with_their_share(features: Features, dataset: Dataset) -> None:
    moment = START + timedelta(hours=9, minutes=30)
    found = features.items_at(["item/7", "item/none"], moment)
    assert [*found.columns[3:]] == list(ITEM_FEATURES)
    known = dataset.events().filter((pl.col("event_time") <= moment) & (pl.col("ingest_time") <= moment))
    count = known.filter(pl.col("item_id") == "item/7").height
    assert found["item_event_count"].to_list() == [count, 0]
    assert found["item_share"].to_list() == pytest.approx([count / known.height, 0])


def test_a_new_view_is_tried_out_before_it_is_declared(features: Features) -> None:
    delight = FeatureView(
        name="user_delight",
        entity=USER,
        features={"user_delights": Count(), "user_delight": Mean("value")},
        description="What delighted a user",
        owner="tests",
        where=pl.col("value") >= 4,
    )
    found = features.at(["user 4", "user 5"], "2024-06-01", views=[delight])
    assert found.columns == ["user_id", "event_time", "known", "user_delights", "user_delight", "user_attributes"]
    assert found["user_delights"].to_list() == [20, 0]
    assert found["user_delight"].to_list() == [4.5, 0.0]
    of_items = FeatureView("item_views", ITEM, {"item_views": Count()}, "Views", "tests")
    assert features.items_at("item/7", "2024-06-01", views=[of_items]).item(0, "item_views") == 30
    with pytest.raises(TowerlineError, match="view 'item_views' is about item, not about user"):
        features.at("user 4", "2024-06-01", views=[of_items])


def test_what_the_online_store_was_told_counts(features: Features, settings: Settings, dataset: Dataset) -> None:
    store = open_online_store(settings, "clicks")
    with pytest.raises(TowerlineError, match=r"nothing is published.*serve_models --dataset clicks"):
        features.now(["user 1"])
    store.publish(dataset)
    before = features.now(["user 1", "nobody"])
    assert before["user_event_count"].to_list() == [20, 0]
    event = dataset.events()[:1].with_columns(
        event_id=pl.lit("told"), user_id=pl.lit("user 1"), event_time=pl.lit(START + timedelta(days=9)).cast(TIME)
    )
    store.append_events(event.select(pl.exclude("source_row", "ingest_time", "split")))
    again = Features("clicks", settings)
    now = datetime.now(UTC)
    assert again.now("user 1").item(0, "user_event_count") == 21
    assert again.at("user 1", now).item(0, "user_event_count") == 21
    assert again.at("user 1", START + timedelta(days=10)).item(0, "user_event_count") == 20
    online, offline = again.now("user 1"), again.at("user 1", datetime.now(UTC))
    changing = ["user_seconds_since_last", "user_recent_weight"]
    same = [name for name in USER_FEATURES if name not in changing]
    assert_frame_equal(online.select(same), offline.select(same))


def test_a_view_is_described_and_drawn(features: Features, capsys: pytest.CaptureFixture[str]) -> None:
    figure = features.describe("user_activity")
    said = capsys.readouterr().out
    for words in ("user_activity", "recommendations", "user_mean_value_30d", "30 d", "event_time"):
        assert words in said
    assert isinstance(figure, Figure)
    titles = [panel.get_title() for panel in figure.axes if panel.axison]
    assert titles == [name for name in USER_FEATURES if user_activity().is_scalar(name)]
    for name in ("item_popularity", "all_activity"):
        assert isinstance(features.describe(name), Figure)
    latest = FeatureView("tried", USER, {"tries": Count()}, "A try", "tests")
    assert isinstance(features.describe(latest), Figure)
    assert "A try" in capsys.readouterr().out


def test_errors_say_what_there_is(features: Features, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"no feature view 'user_actvity' .*user_activity, item_popularity"):
        features.describe("user_actvity")
    with pytest.raises(TowerlineError, match="2 moments for 1 ids"):
        features.at(["user 1"], [START, START])
    with pytest.raises(TowerlineError, match="'yesterday' is no moment"):
        features.at("user 1", "yesterday")
    with pytest.raises(TowerlineError, match="'shoes' does not exist"):
        Features("shoes", settings)
    with pytest.raises(TowerlineError, match=r"which data set.*none"):
        Features(settings=Settings(home=tmp_path))
