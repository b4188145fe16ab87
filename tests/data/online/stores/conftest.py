"""Data sets to publish, and Redis to publish them to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from data.dataset import Dataset, write_dataset
from data.features import views
from data.online.stores.redis import RedisStore
from data.quality.validation import polars_schema
from data.schema import ITEMS, QUARANTINE, USERS
from tests.data.servers import RedisServer


@pytest.fixture
def dataset_of(tmp_path: Path) -> Callable[[pl.DataFrame], Dataset]:
    """Write events as the next version of a data set."""
    empty = {
        name: pl.DataFrame(schema=polars_schema(contract))
        for name, contract in {"items": ITEMS, "users": USERS, "quarantine": QUARANTINE}.items()
    }
    return lambda events: write_dataset(tmp_path, "small", events=events, **empty, source="a test")


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    """In the Redis of the suite."""
    store = RedisStore(redis_url, "small", views())
    yield store
    store.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that may be stopped."""
    with RedisServer() as server:
        yield server
