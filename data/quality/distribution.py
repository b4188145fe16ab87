"""How far two columns are apart, from what their reports keep."""

import json
from pathlib import Path

import numpy as np

from cluster.errors import TowerlineError
from data.quality.statistics import ColumnSummary, Histogram

GROUPS = 10
"""Bins of the reference are taken together to about so many of equally many rows, as is customary for the index."""
CATEGORIES = 20
"""Values of a text column that are looked at; all others are one more."""
MOST_BINS = 1024
_PRIOR = 0.5
"""Added to each count, for a group may be empty on one side."""


def population_stability_index(reference: ColumnSummary, current: ColumnSummary) -> float:
    """Σ (q - p) ln(q / p) over groups of values, p and q being their shares; 0 for two that are the same."""
    before, now = _grouped(reference, current)
    is_used = before + now > 0
    before, now = before[is_used], now[is_used]
    p, q = ((counts + _PRIOR) / (counts.sum() + _PRIOR * len(counts)) for counts in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(reference: ColumnSummary, current: ColumnSummary) -> float:
    """The largest difference of the two cumulated shares, at the edges of the bins of numbers."""
    before, now = _paired(reference, current)
    return float(np.abs(before.cumsum() / before.sum() - now.cumsum() / now.sum()).max())


def _grouped(reference: ColumnSummary, current: ColumnSummary) -> tuple[np.ndarray, np.ndarray]:
    if reference.kind in {"text", "list"}:
        return _categories(reference, current)
    before, now = _paired(reference, current)
    if reference.values and current.values:
        return before, now
    ends = np.searchsorted(before.cumsum(), np.arange(1, GROUPS) * before.sum() / GROUPS)
    starts = np.unique(np.concatenate([[0], ends + 1]))
    starts = starts[starts < len(before)]
    return np.add.reduceat(before, starts), np.add.reduceat(now, starts)


def _categories(reference: ColumnSummary, current: ColumnSummary) -> tuple[np.ndarray, np.ndarray]:
    named = [entry.value for entry in reference.values[:CATEGORIES]]
    sides = []
    for side in (reference, current):
        counts = {entry.value: entry.count for entry in side.values}
        mine = [counts.get(value, 0) for value in named]
        total = sum(side.histograms[0].counts) if side.kind == "text" and side.histograms else sum(counts.values())
        sides.append(np.array([*mine, max(total - sum(mine), 0)], dtype=float))
    return sides[0], sides[1]


def _paired(reference: ColumnSummary, current: ColumnSummary) -> tuple[np.ndarray, np.ndarray]:
    """Counts of both by the same values in order, or in the same bins."""
    if reference.values and current.values:
        before, now = ({float(entry.value): entry.count for entry in side.values} for side in (reference, current))
        places = sorted(before.keys() | now.keys())
        counts = np.array([[side.get(place, 0) for place in places] for side in (before, now)], dtype=float)
        return counts[0], counts[1]
    scale = max(reference.histograms, key=lambda histogram: histogram.entropy).scale
    left, right = (
        next(histogram for histogram in side.histograms if histogram.scale == scale) for side in (reference, current)
    )
    both = aligned(left, right)
    return np.array(both[0].counts, dtype=float), np.array(both[1].counts, dtype=float)


def aligned(left: Histogram, right: Histogram) -> tuple[Histogram, Histogram]:
    """Two histograms of one scale, brought to the same bins, at least as wide as those of the coarser one."""
    level = max(left.level, right.level)
    sides = left.at(level), right.at(level)
    while _span(*sides) > MOST_BINS:  # two that lie far apart have few bins each, but many between them
        level += 1
        sides = left.at(level), right.at(level)
    first = min(side.first for side in sides)
    end = first + _span(*sides)
    before, after = (
        side.model_copy(
            update={
                "first": first,
                "counts": (0,) * (side.first - first) + side.counts + (0,) * (end - side.first - len(side.counts)),
            }
        )
        for side in sides
    )
    return before, after


def _span(left: Histogram, right: Histogram) -> int:
    return max(side.first + len(side.counts) for side in (left, right)) - min(left.first, right.first)


def reference_column(path: Path, table: str, column: str) -> ColumnSummary:
    """A column of an earlier `validation.json`. Raises TowerlineError if it is not there or not that."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return ColumnSummary.model_validate(report["tables"][table]["columns"][column])
    except OSError as error:
        raise TowerlineError(f"reference {path}: {error.strerror}; name the validation.json of a data set") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TowerlineError(
            f"reference {path} has no statistics of {table}.{column} ({reason}); name the validation.json of a data set"
        ) from error
