"""The figures of `benchmarks.features` as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table


def print_figures(figures: Mapping[str, float]) -> None:
    """One row per thing that was measured, one column per side, and the ratios to them."""
    table = Table("", "ours", "polars", "duckdb", "ours / polars", box=rich.box.SIMPLE_HEAD)
    for metric in ("wall_s", "cpu_s", "peak_rss_mb"):
        for size in _sizes(figures):
            table.add_row(f"{metric} {size}", *_row(figures, [f"{metric}/{side}/{size}" for side in _SIDES]))
        table.add_row(f"{metric} join", *_row(figures, [f"{metric}/point_in_time/{side}" for side in _SIDES]))
    console = Console(highlight=False)
    console.print(table)
    others = Table("other figures", "", box=rich.box.SIMPLE_HEAD)
    for name, value in figures.items():
        if not name.startswith(("wall_s", "cpu_s", "peak_rss_mb", "wall_ratio")):
            others.add_row(name, f"{value:,.3g}")
    console.print(others)


def write_picture(figures: Mapping[str, float], path: Path) -> Path:
    """Wall time and peak memory by number of events, side by side, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chart, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, metric, label in zip(axes, ("wall_s", "peak_rss_mb"), ("wall, s", "peak memory, MB"), strict=True):
        places = {size: f"{{side}}/{size}" for size in _sizes(figures)} | {"join": "point_in_time/{side}"}
        for offset, side in enumerate(_SIDES):
            values = [figures.get(f"{metric}/{name.format(side=side)}", 0.0) for name in places.values()]
            bars = axis.bar([place + 0.28 * offset for place in range(len(places))], values, 0.26, label=side)
            axis.bar_label(bars, [f"{value:.3g}" if value else "" for value in values], fontsize=7)
        axis.set_xticks([place + 0.28 for place in range(len(places))], list(places))
        axis.set_title(label)
        axis.set_yscale("log")
    axes[0].legend()
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path


_SIDES = ("ours", "polars", "duckdb")


def _sizes(figures: Mapping[str, float]) -> list[str]:
    return [name.rpartition("/")[2] for name in figures if name.startswith("wall_s/ours/")]


def _row(figures: Mapping[str, float], names: list[str]) -> list[str]:
    values = [figures.get(name) for name in names]
    ratio = f"{values[0] / values[1]:.2f}" if values[0] and values[1] else ""
    return [*(f"{value:,.1f}" if value is not None else "" for value in values), ratio]
