"""The lists that a system's process wrote, as a recommender that our evaluator asks like any other."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.peers.contract import ANSWER_FILE, CHECKED_FILE, LISTS_FILE
from cluster.errors import TowerlineError
from data.schema import USER_ID
from train.index import Codes
from train.metrics.accuracy import hit_rate_at, hits_of, ndcg_at, recall_at
from train.vocabulary import UNKNOWN, Vocabulary

TOLERANCE = 1e-4
"""By which a library's own metric may differ from ours over the same lists: some compute in single precision."""
METRICS = {"ndcg@10": ndcg_at, "recall@10": recall_at, "hit@10": hit_rate_at}
METRICS_AT = 10
"""Places that they look at."""


class StoredLists:
    """What a run recommended. Users it left out, and places it left empty, get the most popular items."""

    def __init__(self, run: Path, vocabulary: Vocabulary, popular: Codes) -> None:
        """`popular`: all item codes, the most popular first."""
        self._vocabulary, self._popular = vocabulary, popular
        self._lists = read_lists(run, vocabulary)

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The lists (B, K) of the users of B rows, as they were written: whether they mask is for others to judge."""
        count = min(count, self._vocabulary.num_items)
        found = [self._list(user, met, count) for user, met in zip(rows[USER_ID], exclude, strict=True)]
        return np.stack(found) if found else np.empty((0, count), dtype=np.int64)

    def _list(self, user: str, met: Codes, count: int) -> Codes:
        named = self._lists.get(user, np.empty(0, dtype=np.int64))
        rest = self._popular[~np.isin(self._popular, np.concatenate([named, met]))]
        whole = np.concatenate([named, rest])[:count]
        return np.pad(whole, (0, count - len(whole)), constant_values=UNKNOWN)


def read_lists(run: Path, vocabulary: Vocabulary) -> dict[str, Codes]:
    """Item codes, best first, by user. Raises TowerlineError if a list names what is no item."""
    lists = pl.read_parquet(run / LISTS_FILE)
    found = {user: vocabulary.encode_items(pl.Series(items, dtype=pl.String)) for user, items in lists.iter_rows()}
    for (user, items), codes in zip(lists.iter_rows(), found.values(), strict=True):
        if (codes == UNKNOWN).any():
            wrong = items[int((codes == UNKNOWN).argmax())]
            raise TowerlineError(f"{run / LISTS_FILE}: {wrong!r}, in the list of user {user!r}, is no item")
    return found


def require_agreement(run: Path, vocabulary: Vocabulary) -> None:
    """Raise TowerlineError, naming both, if a library's own metrics are not ours over the same held-out events."""
    own: Mapping[str, float] = json.loads((run / ANSWER_FILE).read_text())["own"]
    if not own:
        return
    checked = pl.read_parquet(run / CHECKED_FILE).group_by("user", maintain_order=True).agg("item")
    lists = read_lists(run, vocabulary)
    targets = [vocabulary.encode_items(pl.Series(items)) for items in checked["item"]]
    ranked_BK = np.full((checked.height, METRICS_AT), UNKNOWN, dtype=np.int64)
    for row, user in enumerate(checked["user"]):
        first = lists.get(user, ranked_BK[row])[:METRICS_AT]
        ranked_BK[row, : len(first)] = first
    hits_BK, positives_B = hits_of(ranked_BK, targets), np.array([len(codes) for codes in targets])
    for name, value in own.items():
        ours = float(METRICS[name](hits_BK, positives_B, METRICS_AT).mean())
        if not abs(ours - value) <= TOLERANCE:
            raise TowerlineError(
                f"{run}: its library measures {name} = {value:.6f} over {checked.height} users, and we {ours:.6f} of "
                "the lists it wrote: one of both is wrong, so neither is reported"
            )
