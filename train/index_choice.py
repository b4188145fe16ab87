"""Which index a catalogue is searched with: exact while that is fast enough, then what was measured to be faster."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from train.approximate_index import FaissIndex
from train.index import ExactIndex, Floats, Index, overlap

REPEATS = 5
CLUSTERS_PER_PROBE = 4
"""At least: who looks into more clusters may as well look at every item."""

logger = logging.getLogger(__name__)


class IndexConfig(BaseModel):
    """How retrieval searches the catalogue, where the two-tower alone names the candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "exact", "faiss"] = "auto"
    """`auto`: the faster of the two, measured when a variant is loaded; exact below `measured_from` items."""
    measured_from: PositiveInt = 50_000
    """Items from which on `auto` measures. Below, a matrix product takes less than all around it."""
    min_recall: float = Field(default=0.95, gt=0, le=1)
    """Share of the exact candidates that faiss must find on average; if it does not, search is exact."""
    queries: PositiveInt = 32
    """Users whose candidates are looked for when recall and time are measured, at once."""


@dataclass(frozen=True)
class Measured:
    """What the two took for the same batch of queries, and how much of the exact answer faiss gave."""

    exact_ms: float
    faiss_ms: float
    recall: float
    probes: int


def choose_index(vectors_ID: Floats, queries: Callable[[int], Floats], count: int, config: IndexConfig) -> Index:
    """The index for these item vectors. `queries` gives so many vectors of users, whose `count` best are measured."""
    exact, items = ExactIndex(vectors_ID), len(vectors_ID) - 1
    if config.kind == "exact" or (config.kind == "auto" and items < config.measured_from):
        return exact
    start = time.perf_counter()
    approximate = FaissIndex(vectors_ID)
    built_s = time.perf_counter() - start
    measured = measure(exact, approximate, queries(config.queries), count, config.min_recall)
    good = measured.recall >= config.min_recall
    index = approximate if good and (config.kind == "faiss" or measured.faiss_ms < measured.exact_ms) else exact
    logger.log(
        logging.INFO if good else logging.WARNING,
        "%d items, %d queries at once: exact %.2f ms, faiss %.2f ms with recall@%d %.3f (%d of %d clusters, built in "
        "%.1f s; at least %.3f is asked for); search is by %s",
        *(items, config.queries, measured.exact_ms, measured.faiss_ms, count, measured.recall, measured.probes),
        *(approximate.clusters, built_s, config.min_recall, type(index).__name__),
    )
    return index


def measure(exact: ExactIndex, approximate: FaissIndex, queries_BD: Floats, count: int, min_recall: float) -> Measured:
    """Let `approximate` look into as few clusters as give this recall, at most into a quarter, and time both."""
    expected_BK, _ = exact.search(queries_BD, count)
    while True:
        recall = overlap(expected_BK, approximate.search(queries_BD, count)[0])
        if recall >= min_recall or 2 * CLUSTERS_PER_PROBE * approximate.probes > approximate.clusters:
            break
        approximate.probes *= 2
    exact_ms, faiss_ms = (_median_ms(each, queries_BD, count) for each in (exact, approximate))
    return Measured(exact_ms, faiss_ms, recall, approximate.probes)


def _median_ms(index: Index, queries_BD: Floats, count: int) -> float:
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        index.search(queries_BD, count)
        spent.append(time.perf_counter() - start)
    return float(np.median(spent)) * 1e3
