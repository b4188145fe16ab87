from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from cluster.errors import TowerlineError
from data.aggregations import (
    Count,
    Distinct,
    LastN,
    Latest,
    Mean,
    Rate,
    RecencyWeighted,
    Sum,
    TimeSince,
    Window,
    days,
    hours,
)
from data.online.entity_state import EntityStates, State
from data.quality.validation import polars_schema
from data.schema import EVENTS
from data.temporal.point_in_time import features_of
from data.views import EVERYTHING, ITEM, USER, Entity, FeatureView

START = datetime(2024, 1, 1, tzinfo=UTC)
LONGEST = Window(timedelta(days=728))
NEVER = 2**63 - 1


def views_of_everything(entity: Entity) -> tuple[FeatureView, ...]:
    """Every kind of feature, over windows of every hop."""
    return (
        FeatureView(
            name="all",
            entity=entity,
            description="",
            owner="",
            features={
                "count_1h": Count(hours(1)),
                "count_5h": Count(hours(5)),
                "sum_1d": Sum("value", days(1)),
                "mean_7d": Mean("value", days(7), default=3.0),
                "rate_60d": Rate(days(60)),
                "count_728d": Count(LONGEST, default=5),
                "mean": Mean("half"),
                "mean_ratio": Mean("ratio"),
                "count": Count(),
                "items_1h": Distinct("item_id", hours(1)),
                "items_90d": Distinct("item_id", days(90)),
                "halves": Distinct("half"),
                "last_items": LastN("item_id", 3),
                "last_times": LastN("event_time", 2),
                "last_halves": LastN("half", 4),
                "since": TimeSince(default=-1.0),
                "recent": RecencyWeighted(timedelta(hours=6), "half"),
                "latest_item": Latest("item_id", default="none"),
                "latest_half": Latest("half"),
                "latest_decision": Latest("decision_id"),
            },
            columns={
                "half": pl.when(pl.col("value") != 2).then(pl.col("value") / 2),
                "ratio": pl.col("value") / pl.col("value"),
            },
        ),
        FeatureView(
            name="likes",
            entity=entity,
            description="",
            owner="",
            where=pl.col("value") > 2,
            ttl=timedelta(days=2),
            features={
                "likes_2h": Count(hours(2)),
                "likes": Count(default=-7),
                "liked_items": Distinct("item_id", days(14)),
                "last_liked": LastN("item_id", 2),
                "like_since": TimeSince(),
                "like_recent": RecencyWeighted(timedelta(days=1), default=9.0),
                "likes_latest": Latest("value", default=-1.0),
            },
        ),
    )


STATES = {entity: EntityStates(entity, views_of_everything(entity)) for entity in (USER, ITEM, EVERYTHING)}

GAPS = st.one_of(
    st.integers(0, 3),
    st.integers(0, 7200),
    st.integers(0, 40 * 86_400),
    st.integers(0, 900 * 86_400),
)
"""Seconds."""


@st.composite
def histories(draw: st.DrawFn) -> pl.DataFrame:
    """Events of a few entities: of equal times, late, some months apart."""
    rows = []
    second = 0
    for row in range(draw(st.integers(1, 14))):
        second += draw(GAPS)
        time = START + timedelta(seconds=second, microseconds=draw(st.sampled_from([0, 0, 1, 999_999])))
        late = timedelta(seconds=draw(st.one_of(st.just(0), GAPS)))
        rows.append(
            {
                "event_id": f"e{row}",
                "user_id": draw(st.sampled_from(["anna", "\0b", "Ж"])),
                "item_id": draw(st.sampled_from(["x", "y", "ü\n", "long name of an item"])),
                "event_type": "view",
                "value": draw(st.sampled_from([0.0, 1.0, 2.0, 3.7, -5.0, 1e12])),
                "event_time": time,
                "ingest_time": time + late,
                "decision_id": draw(st.sampled_from([None, "d"])),
                "source_row": row,
            }
        )
    order = draw(st.permutations(range(len(rows))))
    return pl.DataFrame([rows[place] for place in order], schema=polars_schema(EVENTS), orient="row")


def applied(states: EntityStates, events: pl.DataFrame, cuts: list[int]) -> dict[str, State]:
    """All events in their order, some at a time."""
    known: dict[str, State] = {}
    for begin, end in zip([0, *cuts], [*cuts, events.height], strict=True):
        batch = events[begin:end]
        ids = states.ids_of(batch)
        known |= states.apply({entity_id: known.get(entity_id) for entity_id in ids}, batch)
    return known


def expected_at(states: EntityStates, events: pl.DataFrame, ids: list[str], at: datetime) -> pl.DataFrame:
    key = states.entity.key
    keys = pl.DataFrame({"event_time": [at] * len(ids), "source_row": [NEVER] * len(ids)}).with_columns(
        pl.col("event_time").cast(pl.Datetime("us", "UTC"))
    )
    if key is not None:
        keys = keys.with_columns(pl.Series(key, ids, dtype=pl.String))
    return features_of(states.layout.views, events, keys).select(
        name for view in states.layout.views for name in view.features
    )


def assert_as_batch(states: EntityStates, known: dict[str, State], events: pl.DataFrame, at: datetime) -> None:
    ids = [*known, "nobody"] if states.entity.key else list(known)
    values = [known[entity_id].value if entity_id in known else None for entity_id in ids]
    frame = states.frame(values, at)
    expected = expected_at(states, events, ids, at)
    recency = [name for name in expected.columns if name.endswith("recent")]
    assert_frame_equal(frame.select(expected.columns).drop(recency), expected.drop(recency))
    assert_frame_equal(frame.select(recency), expected.select(recency), rel_tol=1e-5, abs_tol=1e-30)
    numbers = states.numbers(values, at)
    for place, name in enumerate(states.scalar_features):
        column = frame.get_column(name).cast(pl.Float64).fill_null(np.nan).to_numpy()
        np.testing.assert_allclose(numbers[:, place], column, rtol=1e-6, atol=1e-30)


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_states_equal_the_batch_computation_however_events_come(events: pl.DataFrame, data: st.DataObject) -> None:
    entity = data.draw(st.sampled_from([USER, ITEM, EVERYTHING]))
    states = STATES[entity]
    cuts = sorted(data.draw(st.lists(st.integers(0, events.height), max_size=3)))
    known = applied(states, events, cuts)
    newest = max(events["event_time"].max(), events["ingest_time"].max())
    for later in data.draw(st.lists(GAPS, min_size=1, max_size=3)):
        assert_as_batch(states, known, events, newest + timedelta(seconds=later, microseconds=later % 3))


def few(entity: Entity, **features: Any) -> EntityStates:
    return EntityStates(entity, (FeatureView(name="few", entity=entity, description="", owner="", features=features),))


def events_of(times: list[datetime], values: list[float] | None = None) -> pl.DataFrame:
    """Events of anna, known when they happened."""
    rows = range(len(times))
    columns = {
        "event_id": [f"e{row}" for row in rows],
        "user_id": ["anna"] * len(times),
        "item_id": [f"i{row % 7}" for row in rows],
        "event_type": ["view"] * len(times),
        "value": values or [1.0] * len(times),
        "event_time": times,
        "ingest_time": times,
        "decision_id": [None] * len(times),
        "source_row": list(rows),
    }
    return pl.DataFrame(columns, schema=polars_schema(EVENTS))


def test_entities_without_views_or_with_sequences_only() -> None:
    events = events_of([START, START + timedelta(hours=1)])
    for states in (EntityStates(USER, ()), few(USER, last=LastN("item_id", 1)), few(USER, since=TimeSince())):
        for ids in (["anna"], ["anna", "nobody", "anna"]):
            known = states.apply({"anna": None}, events)
            values = [known[each].value if each in known else None for each in ids]
            assert states.frame(values, START + timedelta(hours=2))["known"].to_list() == [x in known for x in ids]
            assert states.numbers(values, START).shape == (len(ids), len(states.scalar_features))


def test_the_same_events_give_the_same_bytes() -> None:
    features = {"day": Count(days(1)), "items": Distinct("item_id", days(7)), "last": LastN("item_id", 3)}
    states = few(USER, **features, since=TimeSince(), mean=Mean("value", days(30)))
    events = events_of([START + timedelta(hours=3 * hour % 700) for hour in range(0, 700, 2)])
    at_once = applied(states, events, [])["anna"]
    assert applied(states, events, list(range(1, events.height)))["anna"] == at_once
    assert applied(states, events.sample(fraction=1, shuffle=True, seed=1), [100, 101])["anna"] == at_once


def test_tiles_are_bounded_however_many_events_there_are() -> None:
    windows = {f"of_{length}": Count(length) for length in (hours(1), hours(6), days(2), days(14), days(90), LONGEST)}
    states = few(USER, **windows, all=Count())
    minutes = np.sort(np.random.default_rng(0).integers(0, 800 * 1440, 200_000))
    events = events_of([START + timedelta(minutes=int(minute)) for minute in minutes])
    state = states.apply({"anna": None}, events)["anna"]
    assert len(state.value) < 8 * 2 * (170 * len(windows))
    at = events["event_time"][-1] + timedelta(minutes=1, microseconds=1)
    assert states.frame([state.value], at)["all"].to_list() == [200_000]
    assert_as_batch(states, {"anna": state}, events, at)


def test_values_that_left_the_longest_window_are_forgotten() -> None:
    states = few(USER, items=Distinct("item_id", days(1)))
    old = states.apply({"anna": None}, events_of([START] * 7))
    new = states.apply(old, events_of([START + timedelta(days=3)]))
    assert (len(old["anna"].memory), len(new["anna"].memory)) == (8 + 7 * 16, 8 + 16)


def test_a_read_before_the_newest_event_is_as_of_that_event() -> None:
    states = few(USER, hour=Count(hours(1)), since=TimeSince())
    state = states.apply({"anna": None}, events_of([START, START + timedelta(minutes=90)]))["anna"]
    early = states.frame([state.value] * 2, START - timedelta(days=1))
    assert early.select("hour", "since").rows() == [(1, 0.0)] * 2
    assert states.numbers([state.value], START).tolist() == [[1, 0.0]]


def test_one_entity_is_read_as_many_are() -> None:
    states = STATES[USER]
    rng = np.random.default_rng(0)
    times = [START + timedelta(minutes=int(minute)) for minute in np.sort(rng.integers(0, 5000, 60))]
    events = events_of(times, rng.integers(0, 5, 60).astype(float).tolist())
    events = events.with_columns(user_id="u" + (pl.col("source_row") % 11).cast(pl.String))
    known = states.apply(dict.fromkeys(states.ids_of(events)), events)
    values = [*(state.value for state in known.values()), None] * 4
    at = times[-1] + timedelta(hours=5)
    together = states.numbers(values, at)
    one_by_one = np.concatenate([states.numbers([value], at) for value in values])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-14)
    np.testing.assert_array_equal(together[:5], states.numbers(values[:5], at))


def test_a_state_of_other_definitions_is_refused() -> None:
    state = few(USER, one=Count()).apply({"anna": None}, events_of([START]))["anna"]
    other = few(USER, one=Count(), two=Sum("value"))
    for values in ([state.value], [state.value] * 2):
        with pytest.raises(TowerlineError, match="other feature definitions; publish again"):
            other.numbers(values, START)


def test_a_column_that_cannot_be_packed_is_refused() -> None:
    view = FeatureView(
        name="odd",
        entity=USER,
        description="",
        owner="",
        columns={"both": pl.struct("item_id", "value")},
        features={"last": LastN("both", 2)},
    )
    with pytest.raises(TowerlineError, match="view 'odd': the online store cannot keep column 'both' of type Struct"):
        EntityStates(USER, (view,)).apply({"anna": None}, events_of([START]))
