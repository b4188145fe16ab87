"""LensKit: item-based nearest neighbours (Deshpande & Karypis, 2004)."""

import sys
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import polars as pl
from lenskit.batch import recommend  # type: ignore[import-not-found]
from lenskit.data import (  # type: ignore[import-not-found]
    ItemList,
    ItemListCollection,
    RecQuery,
    UserIDKey,
    from_interactions_df,
)
from lenskit.knn import ItemKNNScorer  # type: ignore[import-not-found]
from lenskit.metrics import NDCG, Hit, RunAnalysis  # type: ignore[import-not-found]
from lenskit.metrics.ranking import LogRankWeight  # type: ignore[import-not-found]
from lenskit.pipeline import topn_pipeline  # type: ignore[import-not-found]

from benchmarks.peers.contract import Task, checkable


def main(run: str) -> None:
    """Fit, recommend, measure. The similarity matrix has no random part: the seed changes nothing."""
    task = Task.read(Path(run))
    fitted, history = task.fitted(), task.history()
    columns = {"user_id": fitted["user"].to_list(), "item_id": fitted["item"].to_list()}
    data = from_interactions_df(pd.DataFrame(columns).drop_duplicates(), user_col="user_id", item_col="item_id")
    pipeline = topn_pipeline(ItemKNNScorer(feedback="implicit", **task.settings), n=task.count)
    pipeline.train(data)
    met = dict(history.group_by("user").agg(pl.col("item").unique(maintain_order=True)).iter_rows())
    queries = [RecQuery(user_id=user, user_items=ItemList(item_ids=met[user])) for user in task.asked(history["user"])]
    found = recommend(pipeline, queries, n=task.count, n_jobs=1)
    lists = {str(key.user_id): [str(item) for item in items.ids()] for key, items in found}
    checked = checkable(task.events(task.target), history, history)
    shown, truth = ItemListCollection(UserIDKey), ItemListCollection(UserIDKey)
    for user, items in checked.group_by("user").agg("item").iter_rows():
        truth.add(ItemList(item_ids=items), user_id=user)
        shown.add(found.lookup(user_id=user), user_id=user)
    analysis = RunAnalysis()
    analysis.add_metric(NDCG(10, weight=LogRankWeight(offset=1)), "ndcg@10", default=0.0)
    analysis.add_metric(Hit(10), "hit@10", default=0.0)
    means = analysis.measure(shown, truth).list_metrics().mean()
    task.answer(lists, {name: float(means[name]) for name in ("ndcg@10", "hit@10")}, checked)


if __name__ == "__main__":
    main(sys.argv[1])
