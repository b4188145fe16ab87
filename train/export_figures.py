"""What an export costs and gains: size, speed, and how much of the quality is left, runtime by runtime."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from train.asked import Asked, Pairing
from train.bootstrap import Interval
from train.cases import Cases
from train.evaluation import Measurements, measure
from train.index import Codes, overlap
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.user_values import models_in, paired_test

TORCH = "torch"
"""What the others are compared with."""
SHOWN = 10
TIMED_USERS = 200
REPEATS = 5
WARM_UP = 5
MB = 1e6


@dataclass(frozen=True)
class Runtime:
    """A pair of models and what runs their networks."""

    retrieval: RetrievalModel
    ranking: RankingModel
    files: tuple[Path, ...]
    """The networks and the item vectors on disk."""
    asked: Asked
    """What real questions come to for this pair."""


@dataclass(frozen=True)
class Cost:
    """What a runtime takes."""

    size_mb: float
    users_per_s: float
    """User tower, search and ranker over a batch of users that are encoded already."""
    p50_ms: float
    """The same for one user: the median."""
    overlap: float
    """Of the first ten items that torch names to a user, the share that this runtime names, too."""


@dataclass(frozen=True)
class Quality:
    """What held-out questions say of a runtime."""

    ndcg: Interval
    loss: Interval | None
    """Torch's less this one's, question by question; None of torch."""


def costs_of(
    runtimes: Mapping[str, Runtime], pairing: Pairing, rows: pl.DataFrame, exclude: list[Codes]
) -> dict[str, Cost]:
    """The costs of each, and how far its lists for `rows` are those of `TORCH`, which is among them."""
    lists = {
        name: pairing(each.retrieval, each.ranking).recommend(rows, exclude, SHOWN) for name, each in runtimes.items()
    }
    costs: dict[str, Cost] = {}
    for name, each in runtimes.items():
        users_per_s, p50_ms = _speed(each)
        costs[name] = Cost(
            size_mb=sum(path.stat().st_size for path in each.files) / MB,
            users_per_s=users_per_s,
            p50_ms=p50_ms,
            overlap=overlap(lists[TORCH], lists[name]),
        )
    return costs


def qualities_of(
    models: Mapping[str, tuple[RetrievalModel, RankingModel]], pairing: Pairing, cases: Cases, items: pl.DataFrame
) -> tuple[dict[str, Quality], Measurements]:
    """NDCG@10 of each on all questions, with its loss to `TORCH`; none of them may have learnt from the answers."""
    measured = measure({name: pairing(*each) for name, each in models.items()}, cases, items)
    metric = f"ndcg@{SHOWN}"
    qualities = {}
    for name in models_in(measured.values):
        loss = None if name == TORCH else paired_test(measured.values, TORCH, name, metric).difference
        qualities[name] = Quality(measured.evaluation.intervals[f"{metric}/{name}"], loss)
    return qualities, measured


def figures_of(costs: Mapping[str, Cost], qualities: Mapping[str, Quality]) -> dict[str, float]:
    """As a report names them: `<metric>/<runtime>`."""
    figures: dict[str, float] = {}
    for name, cost in costs.items():
        figures |= {
            f"size_mb/{name}": cost.size_mb,
            f"users_per_s/{name}": cost.users_per_s,
            f"p50_ms/{name}": cost.p50_ms,
            f"overlap@{SHOWN}/{name}": cost.overlap,
        }
    for name, quality in qualities.items():
        figures[f"ndcg@{SHOWN}/{name}"] = quality.ndcg.mean
        if quality.loss is not None:
            figures |= {f"ndcg@{SHOWN}_loss{what}/{name}": value for what, value in _named(quality.loss).items()}
    return figures


def _speed(runtime: Runtime) -> tuple[float, float]:
    """Users per second in a batch, and the median milliseconds for one user."""

    def answer(asked: Asked) -> None:
        vectors_BD = runtime.retrieval.vectors_of(asked.users)
        runtime.retrieval.index.search(vectors_BD, asked.inputs.candidates_BK.shape[1])
        runtime.ranking.scores_of(asked.inputs)

    batch_s = _median_s([lambda: answer(runtime.asked)] * REPEATS)
    ones = [runtime.asked.one(row) for row in range(min(TIMED_USERS, len(runtime.asked)))]
    one_s = _median_s([lambda one=one: answer(one) for one in ones])  # type: ignore[misc]
    return len(runtime.asked) / batch_s, one_s * 1e3


def _median_s(calls: list[Callable[[], None]]) -> float:
    spent = []
    for call in (*calls[:WARM_UP], *calls):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent[len(calls[:WARM_UP]) :]))


def _named(interval: Interval) -> dict[str, float]:
    return {"": interval.mean, "_low": interval.low, "_high": interval.high}
