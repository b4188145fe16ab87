"""Items that nobody has met yet are found by their content: real ones, held out of training."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.dataset import write_dataset
from data.offline.store import read_examples
from data.quality.validation import polars_schema
from data.schema import QUARANTINE
from tests.train.planted import (
    GROUPS,
    Planted,
    build_here,
    item_id,
    planted_events,
    planted_items,
    planted_users,
)
from train.loop import FitConfig
from train.models.retrieval import RetrievalModel
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, retrieval_task, train_retrieval
from train.scaling import Scaling

HELD_OUT = [item_id(group, place) for group in range(GROUPS) for place in (3, 8, 14)]
COUNT = 20
"""As many as a group has items, of three groups."""


def _trained(folder: Path, content: str | None) -> RetrievalModel:
    """A two-tower that reads the history and `content`, of events in which the held-out items do not occur."""
    items = planted_items()
    if content == "title":
        groups = pl.col("attributes").list.first().str.replace("group=", "word")
        items = items.with_columns(title=groups + pl.lit(" number ") + pl.int_range(pl.len()).cast(pl.String))
    dataset = write_dataset(
        folder,
        "without",
        events=planted_events(0).filter(~pl.col("item_id").is_in(HELD_OUT)),
        items=items,
        users=planted_users(),
        quarantine=pl.DataFrame(schema=polars_schema(QUARANTINE)),
        source="made up",
    )
    config = RetrievalConfig(
        two_tower=TwoTowerConfig.model_validate(
            {"embedding_dim": 16, "history_length": 8, "inputs": ["history", *([content] if content else [])]}
        ),
        fit=FitConfig(epochs=5),
        batch_size=64,
        learning_rate=5e-3,
    )
    task = retrieval_task(dataset, build_here(folder, dataset), config)
    return train_retrieval(task, Scaling(backend="none"), name="cold", storage=folder / "runs").model


def _share_found(model: RetrievalModel, planted: Planted) -> float:
    """How many of the real choices of held-out items are among the first `COUNT` of the whole catalogue."""
    rows = read_examples(planted.folder).filter(pl.col("item_id").is_in(HELD_OUT), pl.col("user_event_count") > 1)
    assert rows.height > 100
    found_BK = model.index.search(model.encode_users(rows), COUNT)[0]
    targets_B = model.vocabulary.encode_items(rows["item_id"])
    assert (targets_B > 0).all()
    return float(np.mean((found_BK == targets_B[:, np.newaxis]).any(axis=1)))


@pytest.mark.parametrize("content", ["attributes", "title"])
def test_held_out_items_are_found_by_their_content(planted: Planted, tmp_path: Path, content: str) -> None:
    assert _share_found(_trained(tmp_path, content), planted) > 0.7


def test_without_content_they_are_not(planted: Planted, tmp_path: Path) -> None:
    assert _share_found(_trained(tmp_path, None), planted) < 0.5
