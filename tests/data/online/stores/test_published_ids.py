import pytest

from data.online.stores.published_ids import Sharding, holds
from tests.data.conftest import events_of


@pytest.mark.parametrize(("events", "shards"), [(1, 1), (100_000, 128), (10_000_000, 16_384)])
def test_a_shard_holds_some_hundred_ids(events: int, shards: int) -> None:
    assert Sharding.for_events(events, 4).shards == shards


def test_an_id_is_found_in_its_shard_alone() -> None:
    events = events_of([("anna", f"i{row}", 1.0, row) for row in range(500)])
    sharding = Sharding(4, 8)
    shards = sharding.split(3, events)
    assert list(shards) == list(sharding.shards_of(3)) == list(range(24, 32))
    assert sum(map(len, shards.values())) == 8 * 500
    for event_id in events["event_id"]:
        place = sharding.shard_of("anna", event_id)
        assert sum(holds(shards, shard, event_id) for shard in shards) == 1
        assert place % 8 in {shard % 8 for shard in shards if holds(shards, shard, event_id)}
    assert not any(holds(shards, shard, "another") for shard in (*shards, 99))
