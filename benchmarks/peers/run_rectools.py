"""RecTools: SASRec with the softmax loss (Kang & McAuley, 2018; Klenitskiy & Vasilev, 2023).

It learns from the training events and stops early on NDCG@10 of the validation events, which feed the histories of
the test users afterwards.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything  # type: ignore[import-not-found]
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.metrics import NDCG, HitRate, calc_metrics  # type: ignore[import-not-found]
from rectools.models import SASRecModel  # type: ignore[import-not-found]

from benchmarks.peers.contract import Task, checkable

MOST_EPOCHS = 300
"""Far more than early stopping lets pass."""
PATIENCE = 30
"""Epochs: on few users the measure goes up and down, and ten without a better one are no sign that it has ended."""
PADDING = 0
"""Code of what is no item."""
ITEM = "i"
"""Stands before every id, which could be the word that RecTools pads with."""


class BestEpoch(Callback):  # type: ignore[misc]
    """Measures NDCG@10 after each epoch, keeps the best weights, and stops when they are old."""

    def __init__(self) -> None:
        self.gains: list[torch.Tensor] = []
        self.scores: list[float] = []
        self.weights: dict[str, Any] = {}

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """The gain of each user's item."""
        logits = outputs["logits"].reshape(len(batch["y"]), -1).clone()
        target = batch["y"][:, -1:]
        own = logits.gather(1, target)
        logits.scatter_(1, batch["x"], -torch.inf)
        logits[:, PADDING] = -torch.inf
        rank = (logits > own).sum(dim=1)
        self.gains.append(torch.where(rank < 10, 1 / torch.log2(rank + 2.0), torch.zeros(())))

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Whether this epoch is the best."""
        score = float(torch.cat(self.gains).mean())
        self.gains.clear()
        if trainer.sanity_checking:
            return
        if not self.scores or score > max(self.scores):
            self.weights = copy.deepcopy(module.torch_model.state_dict())
        self.scores.append(score)
        trainer.should_stop = self.is_old

    @property
    def is_old(self) -> bool:
        """Whether the best weights have stood for so many epochs that nothing better is to be expected."""
        return len(self.scores) - self.best_epochs >= PATIENCE

    @property
    def best_epochs(self) -> int:
        """Epochs that the best weights took."""
        return self.scores.index(max(self.scores)) + 1


def interactions(events: pl.DataFrame) -> pd.DataFrame:
    """RecTools' table; its moments are the events' places in their total order, which breaks ties in time."""
    moments = pd.to_datetime(events["order"].to_list(), unit="s")
    users, items = events["user"].to_list(), [ITEM + item for item in events["item"]]
    return pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Datetime: moments, Columns.Weight: 1.0})


def main(run: str) -> None:
    """Fit, recommend, measure."""
    task = Task.read(Path(run))
    torch.set_num_threads(task.threads)
    seed_everything(task.seed)
    first_held_out = task.validation.unique("user", keep="first", maintain_order=True)
    held_out = set(first_held_out["order"].to_list())
    table = interactions(pl.concat([task.train, first_held_out]).sort("order"))

    def is_held_out(raw: pd.DataFrame) -> Any:
        return (raw[Columns.Datetime].astype("int64") // 10**9).isin(held_out).to_numpy()

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=MOST_EPOCHS,
            callbacks=[BestEpoch()],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )

    model = SASRecModel(
        loss="softmax",
        get_val_mask_func=is_held_out,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
        **task.settings,
    )
    model.fit(Dataset.construct(table))
    best = next(each for each in model.fit_trainer.callbacks if isinstance(each, BestEpoch))
    if not best.is_old:
        raise RuntimeError(f"epoch {best.best_epochs} of {MOST_EPOCHS} is the best: it still learns; raise MOST_EPOCHS")
    model.lightning_model.torch_model.load_state_dict(best.weights)

    items = pl.Series([item.removeprefix(ITEM) for item in model.data_preparator.get_known_item_ids()])
    known = task.history().filter(pl.col("item").is_in(items.implode()))
    found = model.recommend(
        task.asked(known["user"]), Dataset.construct(interactions(known)), k=task.count, filter_viewed=True
    )
    by_user = found.groupby(Columns.User, sort=False)[Columns.Item].agg(list)
    lists = {user: [item.removeprefix(ITEM) for item in items] for user, items in by_user.items()}
    checked = checkable(task.events(task.target), task.history(), known)
    metrics = {"ndcg@10": NDCG(k=10, divide_by_achievable=True), "hit@10": HitRate(k=10)}
    own = calc_metrics(metrics, reco=found, interactions=interactions(checked))
    own = {name: float(value) for name, value in own.items()}
    task.answer(lists, own, checked, epochs=best.best_epochs)


if __name__ == "__main__":
    main(sys.argv[1])
