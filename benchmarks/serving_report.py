"""The figures of `benchmarks.serving` as a table with its goals, and as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.figure_text import figure_text

COLUMNS = {
    "rps": "requests / s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "cpu_ms_per_request": "CPU, ms a request",
    "failures": "failures",
}
OF_A_SIDE = {
    "start_s": "start to first answer, s",
    "replica_mb": "a replica, MB",
    "all_mb": "all processes, MB",
}
OF_THE_LANGUAGE_MODEL = {"tokens_per_s": "tokens / s", "ttft_ms": "to the first token, ms"}


@dataclass(frozen=True)
class Goal:
    """One figure over another of the same run, and what that is to be."""

    metric: str
    ours: str
    others: str
    place: str
    bound: float
    at_most: bool = False

    @property
    def name(self) -> str:
        """Of the ratio among the figures."""
        return f"{self.metric}_ratio/{self.ours}/{self.others}/{self.place}"

    def ratio(self, figures: Mapping[str, float]) -> float | None:
        """None where one of the two was not measured."""
        ours = figures.get(f"{self.metric}/{self.ours}/{self.place}")
        others = figures.get(f"{self.metric}/{self.others}/{self.place}")
        return ours / others if ours is not None and others else None

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is what was aimed at."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


GOALS = (
    Goal("rps", "in_process", "fastapi", "c16", 1.0),
    Goal("rps", "in_process", "fastapi", "c64", 1.0),
    Goal("rps", "in_process", "fastapi_tuned", "c16", 0.75),
    Goal("rps", "in_process", "fastapi_tuned", "c64", 0.75),
    Goal("rps", "in_process_r2", "fastapi_tuned", "c16", 0.75),
    Goal("rps", "in_process_r2", "fastapi_tuned", "c64", 0.75),
    Goal("rps", "in_process", "bentoml", "c16", 1.0),
    Goal("rps", "in_process", "bentoml", "c64", 1.0),
    Goal("p50_ms", "in_process", "fastapi", "c1", 1.5, at_most=True),
    Goal("rps", "remote", "fastapi", "c64", 0.5),
    Goal("rps", "remote", "serve_default", "c64", 5.0),
    Goal("tokens_per_s", "llm", "llama_cpp", "c1", 0.9),
    Goal("tokens_per_s", "llm", "llama_cpp", "c4", 0.9),
)


def goal_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The ratios that there are goals for."""
    ratios = {goal.name: goal.ratio(figures) for goal in GOALS}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def print_figures(figures: Mapping[str, float]) -> None:
    """All sides at all numbers of connections, what each takes, and the goals."""
    console = Console(highlight=False, width=120)
    loads = _places(figures, "rps")
    console.print(_table("side / connections", loads, COLUMNS, figures))
    console.print(_table("side", _places(figures, "start_s"), OF_A_SIDE, figures))
    if places := _places(figures, "tokens_per_s"):
        console.print(_table("language model / clients", places, OF_THE_LANGUAGE_MODEL, figures))
    goals = Table("goal", "is", "to be", "", box=rich.box.SIMPLE_HEAD)
    for goal in GOALS:
        ratio = goal.ratio(figures)
        if ratio is not None:
            sign = "≤" if goal.at_most else "≥"
            met = "met" if goal.is_met(ratio) else "not met"
            goals.add_row(goal.name, f"{ratio:.2f}", f"{sign} {goal.bound:g}", met)
    console.print(goals)


def write_picture(figures: Mapping[str, float], path: Path) -> Path:
    """Requests per second, median latency and CPU time by side and connections, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    places = _places(figures, "rps")
    names = list(dict.fromkeys(place.partition("/")[0] for place in places))
    connections = list(dict.fromkeys(place.partition("/")[2] for place in places))
    chart, axes = plt.subplots(1, 3, figsize=(15, 1.5 + 0.6 * len(names)), layout="constrained")
    for axis, metric in zip(axes, ("rps", "p50_ms", "cpu_ms_per_request"), strict=True):
        for number, each in enumerate(connections):
            heights = [row + 0.27 * number for row in range(len(names))]
            bars = axis.barh(heights, [figures[f"{metric}/{name}/{each}"] for name in names], 0.25, label=each)
            axis.bar_label(bars, fmt=figure_text, fontsize=7, padding=2)
        axis.set_yticks([row + 0.27 for row in range(len(names))], names)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.margins(x=0.25)
        axis.set_title(COLUMNS[metric])
    axes[0].legend()
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path


def _places(figures: Mapping[str, float], metric: str) -> list[str]:
    return [name.partition("/")[2] for name in figures if name.startswith(f"{metric}/")]


def _table(title: str, places: list[str], columns: Mapping[str, str], figures: Mapping[str, float]) -> Table:
    table = Table(title, *columns.values(), box=rich.box.SIMPLE_HEAD)
    for place in places:
        table.add_row(place, *(figure_text(figures.get(f"{metric}/{place}")) for metric in columns))
    return table
