"""implicit: ALS (Hu, Koren & Volinsky, 2008) and BPR (Rendle et al., 2009) matrix factorisation."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from implicit.als import AlternatingLeastSquares  # type: ignore[import-not-found]
from implicit.bpr import BayesianPersonalizedRanking  # type: ignore[import-not-found]
from implicit.evaluation import ndcg_at_k  # type: ignore[import-not-found]

from benchmarks.peers.contract import Task, checkable

MODELS = {"implicit_als": AlternatingLeastSquares, "implicit_bpr": BayesianPersonalizedRanking}


def main(run: str) -> None:
    """Fit, recommend, measure."""
    task = Task.read(Path(run))
    fitted, history = task.fitted(), task.history()
    users, items = history["user"].unique().sort().to_list(), fitted["item"].unique().sort().to_list()
    rows, columns = ({name: code for code, name in enumerate(names)} for names in (users, items))

    def matrix(events: Any) -> scipy.sparse.csr_matrix:
        codes = [rows[user] for user in events["user"]], [columns[item] for item in events["item"]]
        met = scipy.sparse.csr_matrix((np.ones(len(events), np.float32), codes), shape=(len(users), len(items)))
        met.data[:] = 1
        return met

    learnt, met = matrix(fitted), matrix(history)
    model = MODELS[task.system](**task.settings, num_threads=task.threads, random_state=task.seed, use_gpu=False)
    model.fit(learnt, show_progress=False)
    asked = np.array([rows[user] for user in task.asked(history["user"])])
    folds_in = {} if task.told.is_empty() else {"recalculate_user": True}
    found, _ = model.recommend(
        asked, met[asked], N=min(task.count, len(items)), filter_already_liked_items=True, **folds_in
    )
    before = dict(history.group_by("user").agg("item").iter_rows())
    lists = {}
    for row, codes in zip(asked, found, strict=True):
        # Where a user runs out of items, the library fills up with those it should have masked.
        masked = set(before[users[row]])
        lists[users[row]] = [items[code] for code in codes if code >= 0 and items[code] not in masked]
    if folds_in:
        # The library's own metric recommends by the factors that users have from training.
        task.answer(lists)
        return
    checked = checkable(task.events(task.target), history, fitted)
    own = ndcg_at_k(model, met, matrix(checked), K=10, show_progress=False, num_threads=task.threads)
    task.answer(lists, {"ndcg@10": float(own)}, checked)


if __name__ == "__main__":
    main(sys.argv[1])
