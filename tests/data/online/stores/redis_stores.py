"""What the tests of the Redis store share."""

from collections.abc import Callable
from datetime import UTC, datetime

import polars as pl

from data.dataset import Dataset
from data.online.stores.redis import RedisStore
from data.views import EVERYTHING

NOW = datetime(2024, 1, 2, tzinfo=UTC)
DatasetOf = Callable[[pl.DataFrame], Dataset]


def counted(store: RedisStore) -> int:
    return store.read(EVERYTHING, [""], NOW)["counted_events"].item()
