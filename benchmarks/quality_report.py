"""The figures of `benchmarks.quality` as tables, as a picture, and as sentences about the goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.quality_scores import GOALS, MAIN, MOST_SECONDS
from benchmarks.quality_search import Found
from benchmarks.quality_systems import SYSTEMS
from train.protocols import EvaluationProtocol
from tune.dimensions import Choices, Dimension

WIDTH = 130
"""Columns of a table; a narrower terminal wraps."""


@dataclass(frozen=True)
class Panel:
    """A part of the picture: the systems by one protocol."""

    title: str
    place: str
    """What stands behind the names of its figures."""
    metric: str
    systems: Sequence[str]


def print_problem(
    figures: Mapping[str, float], systems: Sequence[str], protocol: EvaluationProtocol, title: str, place: str = ""
) -> None:
    """One row per system, the best first. `place`: what stands behind the names of the figures."""
    main, second = protocol.main_metrics[:2]
    table = Table("system", "validation", main, "95 %", "± seeds", second, "seconds", box=rich.box.SIMPLE_HEAD)
    for system in sorted(systems, key=lambda name: -figures[f"{main}/{name}{place}"]):
        low, high = (figures[f"{main}_{end}/{system}{place}"] for end in ("low", "high"))
        table.add_row(
            named(system),
            SYSTEMS[system].words(protocol),
            f"{figures[f'{main}/{system}{place}']:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{figures[f'{main}_seeds_std/{system}{place}']:.4f}",
            f"{figures[f'{second}/{system}{place}']:.4f}",
            f"{figures[f'seconds/{system}{place}']:,.1f}",
        )
    out = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    out.print(f"\n{title}")
    out.print(table)


def print_tests(figures: Mapping[str, float], systems: Sequence[str]) -> None:
    """Ours against each peer, pooled over the cut-offs."""
    ours = [name for name in GOALS if name in systems]
    peers = [name for name in systems if SYSTEMS[name].peer]
    if not ours or not peers:
        return
    table = Table("last three cut-offs", MAIN, *(f"{name} ahead by" for name in ours), box=rich.box.SIMPLE_HEAD)
    for system in sorted(systems, key=lambda name: -figures[f"{MAIN}_pooled/{name}"]):
        tests = [_test(figures, name, system) if system in peers else "" for name in ours]
        table.add_row(named(system), f"{figures[f'{MAIN}_pooled/{system}']:.4f}", *tests)
    out = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    out.print(table)
    for sentence in goals(figures, systems):
        out.print(sentence)


def goals(figures: Mapping[str, float], systems: Sequence[str]) -> list[str]:
    """Whether ours are as far ahead of the peers as they are to be."""
    peers = [name for name in systems if SYSTEMS[name].peer]
    sentences = []
    for ours, multiple in GOALS.items():
        if f"ratio/{ours}/best_peer" not in figures:
            continue
        ratio = figures[f"ratio/{ours}/best_peer"]
        unsure = [peer for peer in peers if not figures[f"difference_low/{ours}/{peer}"] > 0]
        reached = ratio >= multiple and ratio > 1 and not unsure
        doubt = f"; not significantly ahead of {', '.join(unsure)}" if unsure else "; significantly ahead of every peer"
        sentences.append(
            f"{'reached' if reached else 'MISSED'}: {ours} has {ratio:.3f} x the best peer's {MAIN}; "
            f"{'more than 1' if multiple == 1 else f'at least {multiple:g}'} is asked for{doubt}"
        )
    for ours, most in MOST_SECONDS.items():
        if ours in systems:
            seconds = figures[f"seconds/{ours}"]
            verdict = "reached" if seconds < most else "MISSED"
            sentences.append(f"{verdict}: {ours} takes {seconds:.0f} s to train; less than {most:.0f} s is asked for")
    return sentences


def print_settings(found: Mapping[str, Found], systems: Sequence[str]) -> None:
    """What every system was searched for, how often, and what came of it."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    for name in systems:
        space, trials = SYSTEMS[name].space, len(found[name].trials)
        if not space:
            continue
        searched = f"best of {trials} trials" if trials else "NOT SEARCHED on this data set (SEARCH=1 does it)"
        ranges = "; ".join(f"{key} {_ranged(dimension)}" for key, dimension in space.items())
        chosen = ", ".join(f"{key} {_short(value)}" for key, value in found[name].settings.items())
        out.print(f"{name}: {searched} over {ranges}: {chosen}")


def print_trials(found: Mapping[str, Found]) -> None:
    """Every trial."""
    out = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    for name, each in found.items():
        if not each.trials:
            continue
        space = SYSTEMS[name].space
        table = Table(name, f"validation {MAIN}", "seconds", *space, box=rich.box.SIMPLE_HEAD)
        for number, trial in enumerate(each.trials, start=1):
            values = [_short(trial.settings[key]) for key in space]
            mark = " *" if trial.settings == each.settings else ""
            table.add_row(f"{number}{mark}", f"{trial.score:.4f}", f"{trial.seconds:.1f}", *values)
        out.print(table)


def write_picture(figures: Mapping[str, float], panels: Sequence[Panel], path: Path) -> Path:
    """The main metric of every system with its interval."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chart, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 5), layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        main, place = panel.metric, panel.place
        ordered = sorted(panel.systems, key=lambda name: figures[f"{main}/{name}{place}"])
        values = [figures[f"{main}/{name}{place}"] for name in ordered]
        below = [value - figures[f"{main}_low/{name}{place}"] for name, value in zip(ordered, values, strict=True)]
        above = [figures[f"{main}_high/{name}{place}"] - value for name, value in zip(ordered, values, strict=True)]
        colours = ["tab:gray" if SYSTEMS[name].peer else "tab:blue" for name in ordered]
        bars = axis.barh([named(name) for name in ordered], values, xerr=[below, above], color=colours, capsize=2)
        axis.bar_label(bars, [f"{value:.4f}" for value in values], label_type="center", color="white", fontsize=8)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(f"{main}, 95 % by user; blue: ours")
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path


def named(system: str) -> str:
    """A system's name for people."""
    return system if SYSTEMS[system].peer else f"{system} (ours)"


def _test(figures: Mapping[str, float], ours: str, peer: str) -> str:
    low, high = (figures[f"difference_{end}/{ours}/{peer}"] for end in ("low", "high"))
    p_value = figures[f"p_value/{ours}/{peer}"]
    return f"{figures[f'difference/{ours}/{peer}']:+.4f} ({low:+.4f} to {high:+.4f}, p = {p_value:.3f})"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ranged(dimension: Dimension) -> str:
    """A dimension of a search space for people."""
    if isinstance(dimension, Choices):
        return f"one of {', '.join(map(str, dimension.choices))}"
    return f"{dimension.low:g} to {dimension.high:g}{' by orders of magnitude' if dimension.log else ''}"
