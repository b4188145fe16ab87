"""What the runs are worth: all lists of a problem by one evaluator, seeds averaged per user, and tests between systems.

With few users one cut-off proves little, so systems are tested on NDCG@10 of each user's last three events, one
cut-off each, averaged over the seeds; users are drawn with all their values (`train.bootstrap`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import polars as pl

from benchmarks.quality_lists import StoredLists, require_agreement
from benchmarks.quality_problem import Problem
from benchmarks.quality_runs import Run
from benchmarks.quality_systems import SYSTEMS
from data.schema import USER_ID
from data.splits import TEST
from train.bootstrap import Interval, bootstrap
from train.cases import Cases
from train.evaluation import measure
from train.index import Codes
from train.user_values import MODEL, averaged, paired_test
from train.vocabulary import UNKNOWN

MAIN = "ndcg@10"
METRICS = (MAIN, "recall@10", "mrr", "hit_rate@10")
GOALS = {"two_tower": 1.0, "two_tower_ranker": 1.15}
"""Ours → which multiple of the best peer's NDCG@10 it is to reach."""
MOST_SECONDS = {"two_tower_ranker": 600.0}
"""Ours → how long it may take, from the examples to the lists."""


@dataclass(frozen=True)
class Comparison:
    """All systems that answer one problem."""

    problem: Problem
    by_seed: tuple[pl.DataFrame, ...]
    """Values per user (`train.user_values`), a frame per seed; what no seed changes is in the first only."""
    seconds: Mapping[str, float]
    """Training and recommending, on average over the seeds."""

    @property
    def systems(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.seconds)

    @property
    def main(self) -> str:
        """The metric that decides."""
        return self.problem.protocol.main_metrics[0]

    @property
    def values(self) -> pl.DataFrame:
        """Averaged over the seeds, per user."""
        return averaged(self.by_seed)

    def interval(self, system: str, metric: str) -> Interval:
        """Mean and 95 % interval."""
        return interval_of(self.values, system, metric)

    def spread(self, system: str, metric: str) -> float:
        """Standard deviation of a metric between the seeds."""
        means = [frame.filter(pl.col(MODEL) == system)[metric].mean() for frame in self.by_seed]
        found = [float(value) for value in means if isinstance(value, float)]
        return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def compare(problem: Problem, runs: Mapping[str, Sequence[Run]]) -> Comparison:
    """Score the finished runs of each system, one per seed.

    Raises:
        TowerlineError: a library's own metric is not ours, or lists break the protocol.
    """
    cases = problem.cases(TEST)
    popular = by_popularity(cases)
    for run in (run for each in runs.values() for run in each):
        require_agreement(run.folder, problem.vocabulary)
    frames = []
    for number in range(max(len(each) for each in runs.values())):
        lists = {
            name: StoredLists(each[number].folder, problem.vocabulary, popular)
            for name, each in runs.items()
            if number < len(each)
        }
        frames.append(measure(lists, cases, problem.dataset.items()).values)
    seconds = {name: mean(_seconds(run) for run in each) for name, each in runs.items()}
    return Comparison(problem, tuple(frames), seconds)


def by_popularity(cases: Cases) -> Codes:
    """All item codes, those of most training events first."""
    codes = np.argsort(-cases.training.events_I, kind="stable")
    known: Codes = codes[codes != UNKNOWN]
    return known


def validation_score(run: Run) -> float:
    """NDCG@10 of a run whose target are the validation events."""
    require_agreement(run.folder, run.problem.vocabulary)
    cases = run.problem.cases(run.target)
    lists = StoredLists(run.folder, run.problem.vocabulary, by_popularity(cases))
    values = measure({run.system.name: lists}, cases, run.problem.dataset.items()).values
    return interval_of(values, run.system.name, MAIN).mean


def interval_of(values: pl.DataFrame, system: str, metric: str) -> Interval:
    """Mean and 95 % interval of one system's values."""
    of_system = values.filter(pl.col(MODEL) == system)
    return bootstrap(of_system[metric].to_numpy(), of_system[USER_ID])


def best_peer(comparison: Comparison, systems: Sequence[str]) -> str | None:
    """The peer of the highest NDCG@10."""
    peers = [name for name in systems if SYSTEMS[name].peer and name in comparison.systems]
    return max(peers, key=lambda name: comparison.interval(name, MAIN).mean, default=None)


def figures_of(comparisons: Mapping[str, Comparison], systems: Sequence[str]) -> dict[str, float]:
    """Flat figures: of the first problem under `<metric>/<system>`, of the others with the problem's name behind."""
    figures: dict[str, float] = {}
    for number, (name, comparison) in enumerate(comparisons.items()):
        place = f"/{name}" if number else ""
        for system in (system for system in systems if system in comparison.systems):
            for metric in dict.fromkeys([*METRICS, *comparison.problem.protocol.main_metrics]):
                figures[f"{metric}/{system}{place}"] = comparison.interval(system, metric).mean
            for metric in dict.fromkeys([MAIN, comparison.main]):
                interval = comparison.interval(system, metric)
                figures[f"{metric}_low/{system}{place}"] = interval.low
                figures[f"{metric}_high/{system}{place}"] = interval.high
                figures[f"{metric}_seeds_std/{system}{place}"] = comparison.spread(system, metric)
            figures[f"seconds/{system}{place}"] = comparison.seconds[system]
    return figures


def paired_figures(pooled: pl.DataFrame, first: Comparison, systems: Sequence[str]) -> dict[str, float]:
    """Ours against the peers, on the values of all cut-offs together."""
    figures = {f"{MAIN}_pooled/{system}": interval_of(pooled, system, MAIN).mean for system in systems}
    peers = [name for name in systems if SYSTEMS[name].peer]
    best = best_peer(first, systems)
    for ours in (name for name in GOALS if name in systems):
        for peer in peers:
            test = paired_test(pooled, ours, peer, MAIN)
            figures[f"difference/{ours}/{peer}"] = test.difference.mean
            figures[f"difference_low/{ours}/{peer}"] = test.difference.low
            figures[f"difference_high/{ours}/{peer}"] = test.difference.high
            figures[f"p_value/{ours}/{peer}"] = test.p_value
        if best is not None:
            peak = first.interval(best, MAIN).mean
            figures[f"ratio/{ours}/best_peer"] = first.interval(ours, MAIN).mean / peak if peak else 0.0
    return figures


def _seconds(run: Run) -> float:
    answer = run.answer()
    return float(answer["seconds"]) + float(answer.get("seconds_before", 0.0))
