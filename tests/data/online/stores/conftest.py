"""Data sets to publish."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from data.dataset import Dataset, write_dataset
from data.quality.validation import polars_schema
from data.schema import ITEMS, QUARANTINE, USERS


@pytest.fixture
def dataset_of(tmp_path: Path) -> Callable[[pl.DataFrame], Dataset]:
    """Write events as the next version of a data set."""
    empty = {
        name: pl.DataFrame(schema=polars_schema(contract))
        for name, contract in {"items": ITEMS, "users": USERS, "quarantine": QUARANTINE}.items()
    }
    return lambda events: write_dataset(tmp_path, "small", events=events, **empty, source="a test")
