"""What `benchmarks.soak` aims at, its figures as a table, and its course as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.checked_load import Notes
from benchmarks.figure_text import figure_text
from benchmarks.memory_watch import Sample

FAULTS = ("node", "gateway", "ranking", "store", "rollout")
PARTS = (*FAULTS, "steady", "crowd")
"""Of a run, in their order."""
AIMS: Mapping[str, float] = {
    "wrong": 0,
    "failed/rollout": 0,
    "failed/steady": 0,
    "failed/crowd": 0,
    "unexpected/crowd": 0,
    "recovery_s/gateway": 10,
    "recovery_s/ranking": 10,
    "recovery_s/store": 15,
    "recovery_s/node": 60,
    "memory_growth/gateway": 0.05,
    "memory_growth/all": 0.05,
    "memory_mb/gateway/crowd_more": 500,
}
"""Figures and what they may be at most. Those of parts that did not run are missing."""


@dataclass(frozen=True)
class Course:
    """What was seen of a run."""

    figures: dict[str, float]
    moments: Mapping[str, float]
    """When each part began (`time.monotonic`)."""
    notes: Notes
    samples: Sequence[Sample]
    oddities: Sequence[str]
    """What should not have happened, in words."""


def derived(figures: Mapping[str, float]) -> dict[str, float]:
    """What follows from the figures of memory: its growth as a share, and what the crowd took beside."""
    found = {}
    for name in ("gateway", "all"):
        start, end, peak = (figures.get(f"memory_mb/{name}/{moment}") for moment in ("start", "end", "crowd_peak"))
        if start is not None and end is not None:
            found[f"memory_growth/{name}"] = end / start - 1
        if end is not None and peak is not None:
            found[f"memory_mb/{name}/crowd_more"] = peak - end
    return found


def missed(figures: Mapping[str, float]) -> list[str]:
    """The aims that were missed, in words."""
    return [
        f"{name} is {figures[name]:.4g}, the aim is {bound:g} at most"
        for name, bound in AIMS.items()
        if figures.get(name, 0) > bound
    ]


def print_figures(figures: Mapping[str, float]) -> None:
    """What each fault cost, the load after them, and the aims."""
    console = Console(highlight=False, width=120)
    metrics = ("failed", "degraded", "wrong", "recovery_s", "gap_s", "whole_s", "rps")
    table = Table("", *metrics, box=rich.box.SIMPLE_HEAD)
    for part in PARTS:
        table.add_row(part, *(figure_text(figures.get(f"{metric}/{part}")) for metric in metrics))
    console.print(table)
    aims = Table("aim", "is", "at most", "", box=rich.box.SIMPLE_HEAD)
    for name in filter(figures.__contains__, AIMS):
        aims.add_row(
            name, figure_text(figures[name]), f"{AIMS[name]:g}", "met" if figures[name] <= AIMS[name] else "not met"
        )
    console.print(aims)


def write_picture(course: Course, path: Path) -> Path:
    """Answers a second by their ending, and memory, over time, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    begin = min(course.moments.values()) - 10
    chart, (answers, others, memory) = plt.subplots(3, 1, figsize=(12, 8), sharex=True, layout="constrained")
    for ending, counts in course.notes.by_second.items():
        axis = answers if ending == "full" else others
        seconds = range(int(begin), max(counts, default=int(begin)) + 1)
        axis.step([second - begin for second in seconds], [counts[second] for second in seconds], label=ending)
    times = [sample.at - begin for sample in course.samples]
    for name in ("gateway_mb", "all_mb"):
        memory.plot(times, [getattr(sample, name) for sample in course.samples], label=name.removesuffix("_mb"))
    for axis, title in ((answers, "full answers / s"), (others, "others / s"), (memory, "memory, MB (PSS)")):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper right")
        for moment in course.moments.values():
            axis.axvline(moment - begin, color="grey", linewidth=0.8, linestyle=":")
    for name, moment in course.moments.items():
        answers.annotate(name, (moment - begin, 1), xycoords=("data", "axes fraction"), rotation=30, fontsize=8)
    memory.set_xlabel("seconds")
    memory.set_xlim(left=0)
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path
