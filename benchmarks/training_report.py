"""The figures of `benchmarks.training` as tables and as a picture."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.figure_text import figure_text

PLACES = ("plain/w1", "horovod/w1", "ddp/w1", "horovod/w2", "ddp/w2")
SIDE_COLUMNS = {
    "samples_per_s": "samples / s",
    "cpu_ms_per_batch": "computing, ms a batch",
    "efficiency": "efficiency",
    "data_wait": "waiting for data",
    "start_s": "start, s",
    "peak_mb": "peak, MB",
}
EXCHANGE_COLUMNS = {
    "exchange_samples_per_s": "samples / s",
    "exchange_cpu_ms_per_batch": "computing, ms a batch",
    "communication_share": "exchange, of time",
    "communication_cpu_share": "exchange, of computing",
    "kb_per_batch": "sent, kB a batch",
    "exchange_peak_mb": "peak, MB",
}


def print_figures(figures: Mapping[str, float]) -> None:
    """The sides, what the exchange of gradients costs them, and the ratios."""
    console = Console(highlight=False, width=110)
    console.print(figures_table("training", PLACES, SIDE_COLUMNS, figures))
    console.print(figures_table("two ranks", exchange_places(figures), EXCHANGE_COLUMNS, figures))
    shown = (*SIDE_COLUMNS, *EXCHANGE_COLUMNS)
    others = Table("other figures", "", box=rich.box.SIMPLE_HEAD)
    for name, value in figures.items():
        if not name.startswith(tuple(f"{metric}/" for metric in shown)) or name.endswith("/cuda"):
            others.add_row(name, f"{value:,.3g}")
    console.print(others)


def exchange_places(figures: Mapping[str, float]) -> list[str]:
    """What the exchange was measured with."""
    return [name.removeprefix("kb_per_batch/") for name in figures if name.startswith("kb_per_batch/")]


def figures_table(title: str, places: Iterable[str], columns: Mapping[str, str], figures: Mapping[str, float]) -> Table:
    """A row per place, a column per metric; `columns`: metric to the head of its column."""
    table = Table(title, *columns.values(), box=rich.box.SIMPLE_HEAD)
    for place in places:
        table.add_row(place, *(figure_text(figures.get(f"{metric}/{place}")) for metric in columns))
    return table


def write_picture(figures: Mapping[str, float], path: Path) -> Path:
    """Samples per second by side, and by feature time and bytes of the exchange, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    exchange = exchange_places(figures)
    panels = [
        ("samples_per_s", PLACES, "samples / s"),
        ("exchange_cpu_ms_per_batch", exchange, "two ranks: computing, ms a batch"),
        ("kb_per_batch", exchange, "two ranks: sent, kB a batch"),
    ]
    chart, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for axis, (metric, places, title) in zip(axes, panels, strict=True):
        bars = axis.barh(list(places), [figures[f"{metric}/{place}"] for place in places])
        axis.bar_label(bars, fmt="%.4g", fontsize=8, padding=2)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(title)
    axes[2].set_xscale("log")
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path
