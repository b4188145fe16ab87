"""One column of a validation as a piece of HTML: its figures, and its histogram as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise

import numpy as np

from data.quality.distribution import aligned
from data.quality.statistics import ColumnSummary, Histogram

WIDTH, HEIGHT, FLOOR = 320, 132, 112
"""Of the drawing, and where its bars stand."""
MOST_BARS = 64
MOST_DAYS = 256
TOP_BARS = 8
NAMED_BARS = 12
"""Up to so many bars each have their name below."""
LONGEST_NAME = 40
"""Characters of a value that are shown."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Bars:
    """Bars to draw, in order, and those of the reference beside them."""

    names: Sequence[str]
    """What each bar stands for."""
    counts: np.ndarray
    before: np.ndarray | None
    ends: tuple[str, str]
    """What is written below the first and the last."""


def column_card(name: str, now: ColumnSummary, before: ColumnSummary | None = None) -> str:
    """The column with the reference that it was compared with, if it was."""
    facts = "".join(f"<div><dt>{term}</dt><dd>{escape(text)}</dd></div>" for term, text in _facts(now))
    legend = '<div class="legend"><b>■</b> now <i>□</i> reference, as shares</div>' if before else ""
    return (
        f'<article class="card"><header><h3>{escape(name)}</h3><small>{now.kind}</small></header>'
        f"<dl>{facts}</dl>{_drawing(now, before)}{legend}</article>"
    )


def _facts(column: ColumnSummary) -> list[tuple[str, str]]:
    about = "" if column.distinct_is_exact else "about "
    facts = [("rows", f"{column.count:,}"), ("null", f"{column.nulls:,}"), ("distinct", f"{about}{column.distinct:,}")]
    for name in ("min", "mean", "max"):
        value = getattr(column, name)
        if value is not None:
            facts.append((name, f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else f"{value:,.5g}"))
    if column.std is not None and column.kind == "number":
        facts.append(("std", f"{column.std:,.5g}"))
    if column.not_finite:
        facts.append(("not finite", f"{column.not_finite:,}"))
    if column.kind in {"text", "list"} and column.histograms:
        lengths = column.histograms[0]
        low, high = lengths.edge(0), lengths.edge(len(lengths.counts)) - 1
        facts.append(("characters" if column.kind == "text" else "values", f"{low:g}" + f" to {high:g}" * (low < high)))
    return facts


def _drawing(now: ColumnSummary, before: ColumnSummary | None) -> str:
    if now.count == now.nulls:
        return '<p class="note">no values</p>'
    if now.kind in {"text", "list"}:
        return _top_values(now, before) + _length_histogram(now, before)
    if now.kind == "number" and now.values and not (before and not before.values):
        return _svg(_number_values(now, before))
    return _svg(_binned(now, before)) if now.histogram else ""


def _number_values(now: ColumnSummary, before: ColumnSummary | None) -> Bars:
    sides = [{float(entry.value): entry.count for entry in side.values} for side in (now, before) if side]
    places = sorted(set().union(*sides))
    counts = [np.array([side.get(place, 0) for place in places], dtype=float) for side in sides]
    names = [f"{place:g}" for place in places]
    return Bars(names, counts[0], counts[1] if before else None, (names[0], names[-1]))


def _length_histogram(now: ColumnSummary, before: ColumnSummary | None) -> str:
    if now.kind == "text" and now.distinct <= TOP_BARS and not _are_ids(now):
        return ""
    caption = "characters" if now.kind == "text" else "values in a row"
    bars = _bars(now.histograms[0], before.histograms[0] if before and before.histograms else None, are_whole=True)
    return f"<small>{caption}</small>{_svg(bars)}"


def _binned(now: ColumnSummary, before: ColumnSummary | None) -> Bars:
    chosen = (before or now).histogram or now.histogram
    assert chosen, "a column with numbers has a histogram"
    mine = next(histogram for histogram in now.histograms if histogram.scale == chosen.scale)
    return _bars(mine, chosen if before else None)


def _bars(now: Histogram, before: Histogram | None, *, are_whole: bool = False) -> Bars:
    """Neighbouring bins are taken together until there are few enough to see."""
    mine, theirs = aligned(now, before or now)
    most = MOST_DAYS if now.scale == "days" else MOST_BARS
    while len(mine.counts) > most:
        mine, theirs = mine.at(mine.level + 1), theirs.at(mine.level + 1)
    edges = [_edge(mine, position) for position in range(len(mine.counts) + 1)]
    if are_whole and mine.level == 0:
        names = edges[:-1]
        ends = names[0], names[-1]
    else:
        names = [f"{low} to {high}" for low, high in pairwise(edges)]
        ends = edges[0], edges[-1]
    counts = np.array([mine.counts, theirs.counts], dtype=float)
    return Bars(names, counts[0], counts[1] if before else None, ends)


def _edge(histogram: Histogram, position: int) -> str:
    edge = histogram.edge(position)
    if histogram.scale != "days":
        return f"{edge:,.4g}"
    return f"{_EPOCH + timedelta(days=edge):{'%Y-%m-%d' if histogram.level >= 0 else '%Y-%m-%d %H:%M'}}"


def _svg(bars: Bars) -> str:
    """Upright bars, each with its name and count as a tooltip; the reference as outlines over them."""
    shares = bars.counts / max(bars.counts.sum(), 1)
    before = bars.before / max(bars.before.sum(), 1) if bars.before is not None else None
    top = max(shares.max(), before.max() if before is not None else 0) or 1
    step = WIDTH / len(shares)
    gap = min(step * 0.15, 6)
    drawn = "".join(
        f'<rect class="bar" x="{place * step + gap / 2:.2f}" width="{step - gap:.2f}" y="{FLOOR - height:.2f}" '
        f'height="{height:.2f}"><title>{escape(name)}: {count:,.0f}</title></rect>'
        for place, (name, count, height) in enumerate(
            zip(bars.names, bars.counts, shares / top * (FLOOR - 6), strict=True)
        )
        if count
    )
    line = _outline(before / top * (FLOOR - 6), step) if before is not None else ""
    label = f"histogram from {escape(bars.ends[0])} to {escape(bars.ends[1])}"
    axis = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{FLOOR}" y2="{FLOOR}"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{drawn}{line}{axis}'
        f"{_labels(bars, step)}</svg>"
    )


def _outline(heights: np.ndarray, step: float) -> str:
    """The tops of the reference's bars, as one line of steps."""
    path = "".join(f"V{FLOOR - height:.2f}H{(place + 1) * step:.2f}" for place, height in enumerate(heights))
    return f'<path class="before" d="M0 {FLOOR}{path}V{FLOOR}"/>'


def _labels(bars: Bars, step: float) -> str:
    if len(bars.names) <= NAMED_BARS and all(len(name) <= step / 6 for name in bars.names):
        places = [((place + 0.5) * step, "middle", name) for place, name in enumerate(bars.names)]
    else:
        places = [(0, "start", bars.ends[0]), (WIDTH, "end", bars.ends[1])]
    return "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>' for x, anchor, text in places
    )


def _are_ids(column: ColumnSummary) -> bool:
    """Whether each row has a value of its own, as far as one can see."""
    return column.kind == "text" and column.values_are_exact and column.values[0].count == 1


def _top_values(now: ColumnSummary, before: ColumnSummary | None) -> str:
    """The most frequent values as bars that lie, with their share; a mark where the reference has it."""
    if _are_ids(now):
        return '<p class="note">every value once</p>'
    total = max(sum(now.histograms[0].counts) if now.histograms else 0, 1)
    earlier = {entry.value: entry.count for entry in before.values} if before else {}
    whole = max(sum(before.histograms[0].counts) if before and before.histograms else 0, 1)
    shares = [(str(entry.value), entry.count / total, earlier.get(entry.value, 0) / whole) for entry in now.values]
    shown = shares[:TOP_BARS]
    top = max((max(mine, theirs) for _, mine, theirs in shown), default=1)
    rows = "".join(
        f'<div class="value" title="{escape(name)}"><span>{escape(_short(name))}</span>'
        f'<span class="track"><b style="width:{mine / top:.2%}"></b>'
        + (f'<i style="left:calc({theirs / top:.2%} - 2px)"></i>' if before else "")
        + f"</span><span>{mine:.1%}</span></div>"
        for name, mine, theirs in shown
    )
    source = "most frequent" if now.values_are_exact else "most frequent, estimated from a sample"
    return f'<small>{source}</small><div class="values">{rows}</div>' if rows else ""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
