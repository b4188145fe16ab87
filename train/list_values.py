"""What the ranked lists of some users are worth: every metric that has a value per list."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse

from data.schema import ATTRIBUTES, ITEM_ID
from train.cases import Cases
from train.index import Codes
from train.metrics.accuracy import (
    Hits,
    average_precision_at,
    hit_rate_at,
    hits_of,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    truncated_recall_at,
)
from train.metrics.calibration import miscalibration
from train.metrics.variety import intra_list_diversity, novelty
from train.protocols import EvaluationProtocol
from train.segments import HEAD, TAIL, head_items
from train.vocabulary import Vocabulary

Values = npt.NDArray[np.float64]
Metric = Callable[[Hits, Codes], Values]

SHOWN = 10
"""Places of a list that people see: what coverage, Gini, novelty, diversity and calibration look at."""


def accuracy_metrics(protocol: EvaluationProtocol) -> dict[str, Metric]:
    """Name to metric, as the protocol defines it."""
    recall = truncated_recall_at if protocol.truncated_recall else recall_at
    metrics: dict[str, Metric] = {
        "recall@10": partial(recall, k=10),
        "ndcg@10": partial(ndcg_at, k=10),
        "mrr": reciprocal_rank,
        "map@10": partial(average_precision_at, k=10),
        "hit_rate@10": partial(hit_rate_at, k=10),
    }
    metrics |= {f"recall@{k}": partial(recall, k=k) for k in (20, 50, 100)}
    return metrics | {"ndcg@100": partial(ndcg_at, k=100)}


class ListValues:
    """The values of lists that answer `cases`."""

    def __init__(self, cases: Cases, items: pl.DataFrame) -> None:
        """`items`: the catalogue, for its attributes."""
        self._cases = cases
        self._metrics = accuracy_metrics(cases.protocol)
        self._is_head_I = head_items(cases.training)
        self._attributes_IA = _attributes(items, cases.vocabulary)

    def of(self, ranked_BK: Codes, some: slice) -> dict[str, Values]:
        """Metric to values (B,) for the lists that answer `some` of the cases; NaN where a metric has none."""
        targets, training = self._cases.targets[some], self._cases.training
        hits_BK, positives_B = hits_of(ranked_BK, targets), _sizes(targets)
        values = {name: metric(hits_BK, positives_B) for name, metric in self._metrics.items()}
        for part, is_part_I in ((HEAD, self._is_head_I), (TAIL, ~self._is_head_I)):
            in_part_B = _sizes([codes[is_part_I[codes]] for codes in targets])
            part_hits_BK = hits_BK & is_part_I[ranked_BK]
            for name in self._cases.protocol.main_metrics:
                values[f"{name}/{part}"] = self._metrics[name](part_hits_BK, in_part_B)
        shown_BK = ranked_BK[:, :SHOWN]
        values[f"novelty@{SHOWN}"] = novelty(shown_BK, training.users_I, training.num_users)
        if self._attributes_IA.nnz:
            values[f"diversity@{SHOWN}"] = intra_list_diversity(shown_BK, self._attributes_IA)
            exclude = self._cases.exclude[some]
            values[f"miscalibration@{SHOWN}"] = miscalibration(shown_BK, exclude, self._attributes_IA)
        return values


def _sizes(lists: Sequence[Codes]) -> Codes:
    return np.array([len(codes) for codes in lists], dtype=np.int64)


def _attributes(items: pl.DataFrame, vocabulary: Vocabulary) -> scipy.sparse.csr_array:
    """1 where an item code has an attribute (I + 1, A), with the attributes of the catalogue as it is."""
    pairs = items.select(ITEM_ID, pl.col(ATTRIBUTES).list.unique()).explode(ATTRIBUTES).drop_nulls()
    rows = vocabulary.encode_items(pairs[ITEM_ID])
    columns = pairs[ATTRIBUTES].rank("dense").to_numpy().astype(np.int64) - 1
    shape = (vocabulary.num_items + 1, int(columns.max(initial=0)) + 1)
    known = rows > 0
    ones = np.ones(known.sum(), dtype=np.int64)
    return scipy.sparse.csr_array((ones, (rows[known], columns[known])), shape=shape)
