from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data.dataset import Dataset, write_dataset
from data.features import views
from data.online import materialization
from data.online.materialization import additions, brought, bucket_states, digest_of, sharding_of, tasks_of
from data.online.stores.definitions import Definitions
from data.parallel import in_process, on_ray
from data.quality.validation import polars_schema
from data.schema import EVENTS, ITEMS, QUARANTINE, USERS
from data.views import USER
from tests.data.conftest import events_of

ROWS = [(f"u{row % 17}", f"i{row % 5}", float(row % 3), row) for row in range(200)]


def write(home: Path, events: pl.DataFrame) -> Dataset:
    empty = {
        name: pl.DataFrame(schema=polars_schema(contract))
        for name, contract in {"items": ITEMS, "users": USERS, "quarantine": QUARANTINE}.items()
    }
    return write_dataset(home, "small", events=events, **empty, source="a test")


@pytest.mark.usefixtures("ray_session")
def test_on_ray_as_in_this_process(tmp_path: Path) -> None:
    dataset, definitions = write(tmp_path, events_of(ROWS)), Definitions(views())
    tasks = tasks_of(dataset)
    assert len(tasks) == 2 * dataset.manifest.buckets
    here = {each.task: each for each in bucket_states(dataset, definitions, tasks, in_process)}
    there = {each.task: each for each in bucket_states(dataset, definitions, tasks, on_ray)}
    by_default = {each.task: each for each in bucket_states(dataset, definitions, tasks)}
    assert set(here) == set(there) == set(by_default) == set(tasks)
    for task in tasks:
        assert here[task].states == there[task].states == by_default[task].states
        one, two = here[task].of_users, there[task].of_users
        if one is not None and two is not None:
            assert (one.everything, one.ids, one.digest) == (two.everything, two.ids, two.digest)
            assert_frame_equal(one.met, two.met)
        assert (one is None) == (two is None) == (task[0] != USER.name)
    assert sum(each.events for each in here.values() if each.of_users) == len(ROWS)


@pytest.mark.usefixtures("ray_session")
def test_additions_are_what_a_version_has_besides(tmp_path: Path) -> None:
    old = write(tmp_path / "old", events_of(ROWS[:150]))
    sharding = sharding_of(old)
    new = write(tmp_path / "new", events_of(ROWS))
    changed = write(tmp_path / "changed", events_of([*ROWS[:3], ("u3", "i3", 9.0, 3), *ROWS[4:]]))
    buckets = {bucket: old.bucket(USER, bucket, EVENTS.names) for bucket in range(old.manifest.buckets)}
    digests = {(USER.name, bucket): digest_of(events) for bucket, events in buckets.items()} | {("item", 0): ""}
    ids = {shard: each for bucket, events in buckets.items() for shard, each in sharding.split(bucket, events).items()}
    known = (digests, sharding, lambda shards: {shard: ids[shard] for shard in shards})
    for run in (in_process, on_ray, None):
        found = additions(new, *known, most=50, run=run)
        assert found is not None
        events = pl.concat([each.events for each in found])
        assert events.sort("source_row")["source_row"].to_list() == list(range(150, 200))
        for each in found:
            assert each.digest == digest_of(new.bucket(USER, each.bucket, EVENTS.names))
            whole = sharding.split(each.bucket, new.bucket(USER, each.bucket, EVENTS.names))
            assert {**ids, **each.ids}.items() >= whole.items()
        assert additions(changed, *known, most=50, run=run) is None
        assert additions(new, *known, most=49, run=run) is None


def test_buckets_that_stay_as_they_are_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialization, "BUCKETS_AT_ONCE", 2)
    old = write(tmp_path / "old", events_of(ROWS))
    new = write(tmp_path / "new", events_of([*ROWS, ("u1", "new", 1.0, 999)]))
    sharding = sharding_of(old)
    digests = {(USER.name, b): digest_of(old.bucket(USER, b, EVENTS.names)) for b in range(old.manifest.buckets)}
    at_once: list[int] = []

    def shards(numbers: Sequence[int]) -> dict[int, bytes]:
        return sharding.split(numbers[0] // sharding.shards, old.bucket(USER, numbers[0] // sharding.shards))

    def run(function: Callable[[object], object], tasks: Sequence[object]) -> Iterator[object]:
        at_once.append(len(tasks))
        return map(function, tasks)

    found = additions(new, digests, sharding, shards, most=1, run=run)
    assert [each.events["item_id"].to_list() for each in found] == [["new"]]
    assert set(at_once) == {2}


def test_a_digest_knows_no_order() -> None:
    events = events_of(ROWS)
    assert digest_of(events) == digest_of(events.sample(fraction=1, shuffle=True, seed=1))
    assert digest_of(events) != digest_of(events.with_columns(value=pl.col("value") + 1))


OTHERWISE = {
    "value": pl.col("value") + 1,
    "ingest_time": pl.col("ingest_time").dt.offset_by("1us"),
    "source_row": pl.col("source_row") + 1,
    "decision_id": pl.lit("d"),
}


@pytest.mark.parametrize("column", OTHERWISE)
def test_an_appended_event_is_brought_only_as_it_is(column: str) -> None:
    log, added = events_of(ROWS)[:3], events_of(ROWS)[2:6]
    assert_frame_equal(brought(log, added), log[2:])
    assert brought(log, added.with_columns(OTHERWISE[column].alias(column))) is None
