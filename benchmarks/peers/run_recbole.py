"""RecBole: BPR and EASE. A model that takes epochs stops early on the validation events, and is then fitted again.

RecBole 1.2.1 is older than what it runs on here: `torch.load` has to be told that its checkpoints are trusted.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

torch.load = functools.partial(torch.load, weights_only=False)

from recbole.config import Config  # type: ignore[import-not-found]  # noqa: E402
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]  # noqa: E402
from recbole.data.interaction import Interaction  # type: ignore[import-not-found]  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # type: ignore[import-not-found]  # noqa: E402

from benchmarks.peers.contract import Task, checkable  # noqa: E402

MODELS = {"recbole_bpr": "BPR", "recbole_ease": "EASE"}
MOST_EPOCHS = 300
PATIENCE = 10
"""RecBole's own default `stopping_step`."""
METRICS = ("ndcg@10", "recall@10", "hit@10")
USER, ITEM = "u", "i"
"""Stand before every id, which could be a word that pandas takes for a missing value."""


class Fit:
    """A model of RecBole's on events that are already split."""

    def __init__(self, task: Task, splits: dict[str, pl.DataFrame], epochs: int) -> None:
        for name, events in splits.items():
            table = events.select(
                (USER + pl.col("user")).alias("user_id:token"), (ITEM + pl.col("item")).alias("item_id:token")
            )
            Path("events").mkdir(exist_ok=True)
            table.unique(maintain_order=True).write_csv(f"events/events.{name}.inter", separator="\t")
        settings = {
            "data_path": str(Path.cwd()),
            "checkpoint_dir": "saved",
            "benchmark_filename": list(splits),
            "load_col": {"inter": ["user_id", "item_id"]},
            "eval_args": {"order": "RO", "mode": "full", "group_by": "user"},
            "metrics": ["NDCG", "Recall", "Hit"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 12,
            "epochs": epochs,
            "stopping_step": PATIENCE,
            "seed": task.seed,
            "state": "ERROR",
            "show_progress": False,
            "use_gpu": False,
        }
        config = Config(model=MODELS[task.system], dataset="events", config_dict=settings | task.settings)
        init_seed(config["seed"], config["reproducibility"])
        self._dataset = create_dataset(config)
        self._train, self._valid, self._test = data_preparation(config, self._dataset)
        init_seed(config["seed"], config["reproducibility"])
        self._model = get_model(config["model"])(config, self._train._dataset)
        self._trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, self._model)

    def until_best(self) -> int:
        """Train until the validation events stop it, and keep the best epoch's weights; how many epochs it took."""
        scores: list[float] = []
        self._trainer.fit(self._train, self._valid, verbose=False, callback_fn=lambda _, score: scores.append(score))
        self._trainer.resume_checkpoint(self._trainer.saved_model_file)
        return int(np.argmax(scores)) + 1

    def to_the_end(self) -> None:
        """Train for all epochs."""
        self._trainer.fit(self._train, None, verbose=False, saved=False)

    def own(self) -> dict[str, float]:
        """RecBole's metrics over the test events."""
        result = self._trainer.evaluate(self._test, load_best_model=False)
        return {name: float(result[name]) for name in METRICS}

    @torch.no_grad()
    def lists(self, users: list[str], history: dict[str, list[str]], count: int) -> dict[str, list[str]]:
        """The best items of each user, without the history."""
        self._model.eval()
        user_field, item_field = self._dataset.uid_field, self._dataset.iid_field
        names = self._dataset.field2id_token[item_field]
        found = {}
        for user in users:
            code = torch.tensor([self._dataset.token2id(user_field, USER + user)])
            scores = self._model.full_sort_predict(Interaction({user_field: code})).view(-1)
            scores[0] = -torch.inf
            scores[self._dataset.token2id(item_field, np.array([ITEM + item for item in history[user]]))] = -torch.inf
            best = scores.topk(min(count, len(scores)))
            found[user] = [names[code].removeprefix(ITEM) for code in best.indices[best.values > -torch.inf].tolist()]
        return found


def main(run: str) -> None:
    """Fit, fit again with the validation events where the task says so, recommend, measure."""
    task = Task.read(Path(run))
    torch.set_num_threads(task.threads)
    history = task.history()
    fitted = task.fitted()
    checked = checkable(task.events(task.target), history, fitted)
    choosing = checkable(task.validation, task.train, task.train)
    takes_epochs = task.system == "recbole_bpr"
    splits = {"train": task.train, "valid": choosing, "test": choosing}
    fit, epochs = None, 1
    if takes_epochs:
        fit = Fit(task, splits, MOST_EPOCHS)
        epochs = fit.until_best()
    if fit is None or task.target == "test":
        fit = Fit(task, {"train": fitted, "valid": checked, "test": checked}, epochs)
        fit.to_the_end()
    before: dict[str, Any] = dict(history.group_by("user").agg("item").iter_rows())
    lists = fit.lists(task.asked(fitted["user"]), before, task.count)
    task.answer(lists, fit.own(), checked, epochs=epochs)


if __name__ == "__main__":
    main(sys.argv[1])
