"""What each part of our pair is worth: the same training without it, or with what it leaves out; `make bench-ablation`.

    python -m benchmarks.ablation --dataset movielens-100k --seeds 3
    python -m benchmarks.ablation --rows without_history without_text

The settings are the stored ones of `benchmarks.quality` but for what a row changes (`benchmarks.ablation_rows`), and
so are the processes and the evaluator: what both need is trained once, and a finished run is kept.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.ablation_rows import COMPLETE, ROWS, WITHOUT_RANKER, Row
from benchmarks.quality import MOVIELENS, PROTOCOLS, opened, prepared
from benchmarks.quality_bench import Bench
from benchmarks.quality_problem import Problem
from benchmarks.quality_report import WIDTH
from benchmarks.quality_runs import Run
from benchmarks.quality_scores import MAIN, compare, figures_of
from benchmarks.quality_search import Found, read_settings
from benchmarks.quality_systems import SYSTEMS
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings as Places
from train.user_values import paired_test, write_user_values

PROTOCOL = """\
Every row is the pair of two-tower and ranker with the stored settings, trained again with what the row changes, and \
asked for 100 items of the full catalogue. A change to the two-tower is also measured without the ranker. The softmax \
over the whole catalogue, which is the default, samples nothing, so logQ correction is judged where negatives are \
sampled: with it and without it, in the batch. Values are averaged over the seeds per user; differences: paired, 95 % \
by bootstrap over users, p by sign-flip randomisation. """


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    names = [row.name for row in ROWS[1:]]
    option = parser.add_argument
    option("--dataset", default=MOVIELENS, help=f"name of an ingested data set; {MOVIELENS} is ingested if need be")
    option("--seeds", type=int, default=3, help="trainings of each row")
    option("--protocol", choices=PROTOCOLS, default=next(iter(PROTOCOLS)), help="how events are split")
    option("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    option("--parallel", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time, one thread each")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train what is missing, score, report."""
    asked, places = parse(arguments), Places()
    clock = ReportClock("bench_ablation")
    rows = chosen(asked.rows)
    dataset = opened(places, asked.dataset)
    problem = prepared(places, dataset, {asked.protocol})[asked.protocol]
    found = read_settings(dataset.name, list(SYSTEMS.values()))
    runs = runs_of(rows, problem, found, asked.seeds)
    Bench(asked.parallel).finish(run for each in runs.values() for run in each)
    comparison = compare(problem, runs)
    figures = figures_of({problem.name: comparison}, list(runs)) | differences(rows, comparison.values)
    sentence = f"{asked.dataset}, {problem.protocol.words} (protocol {problem.protocol.hash})"
    print_rows(rows, figures, sentence)
    finished = clock.finish(
        config={**vars(asked), "rows": {row.name: row.systems(found)[row.name][1] for row in rows}},
        protocol=f"{PROTOCOL}{problem.protocol.words}, {problem.protocol.hash}",
        data_version=dataset.manifest.data_version,
        figures=figures,
    )
    path = finished.write(places.home)
    write_user_values(comparison.values, places.home, finished)
    picture = write_picture(rows, figures, sentence, path.with_suffix(".png"))
    print(f"report {path}, picture {picture}, {finished.seconds:.0f} s")


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows of these names, with those that they are compared with, in the order of `ROWS`."""
    wanted = {COMPLETE, *names, *(row.against for row in ROWS if row.name in names)}
    return [row for row in ROWS if row.name in wanted]


def runs_of(rows: Sequence[Row], problem: Problem, found: Mapping[str, Found], seeds: int) -> dict[str, list[Run]]:
    """The runs of every row, one per seed, with the ranker and without it."""
    return {
        name: [Run(system, problem, settings, seed, label=name) for seed in range(seeds)]
        for row in rows
        for name, (system, settings) in row.systems(found).items()
    }


def differences(rows: Sequence[Row], values: pl.DataFrame) -> dict[str, float]:
    """Each row against the one that it is compared with, and the complete one against its two-tower alone."""
    by_name = {row.name: row for row in rows}
    pairs = {WITHOUT_RANKER: COMPLETE}
    for row in (row for row in rows if row.name != COMPLETE):
        pairs[row.name] = row.against
        if row.retrieval:
            pairs[row.alone] = by_name[row.against].alone
    figures = {}
    for name, other in pairs.items():
        test = paired_test(values, name, other, MAIN)
        figures[f"difference/{name}"] = test.difference.mean
        figures[f"difference_low/{name}"] = test.difference.low
        figures[f"difference_high/{name}"] = test.difference.high
        figures[f"p_value/{name}"] = test.p_value
    return figures


def print_rows(rows: Sequence[Row], figures: Mapping[str, float], title: str) -> None:
    """One line per row, with what it changes below."""
    columns = ("two-tower alone", "difference", "with the ranker", "difference", "± seeds", "seconds")
    table = Table(MAIN, *columns, "against", box=rich.box.SIMPLE_HEAD)
    for row in rows:
        alone = row.alone if row.retrieval or row.name == COMPLETE else ""
        table.add_row(
            row.name,
            f"{figures[f'{MAIN}/{alone}']:.4f}" if alone else "",
            _difference(figures, alone) if row.retrieval else "",
            f"{figures[f'{MAIN}/{row.name}']:.4f}",
            _difference(figures, row.name),
            f"{figures[f'{MAIN}_seeds_std/{row.name}']:.4f}",
            f"{figures[f'seconds/{row.name}']:,.0f}",
            "" if row.name == COMPLETE else row.against,
        )
    out = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH + 20)
    out.print(f"\n{title}")
    out.print(table)
    out.print(f"{WITHOUT_RANKER}: {_difference(figures, WITHOUT_RANKER)} against {COMPLETE}")
    for row in rows:
        out.print(f"{row.name}: {row.words}")


def write_picture(rows: Sequence[Row], figures: Mapping[str, float], title: str, path: Path) -> Path:
    """NDCG@10 of every row with its interval, with the ranker and without it, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = dict.fromkeys(name for row in rows for name in (row.name, row.alone))
    ordered = list(reversed(names))
    values = [figures[f"{MAIN}/{name}"] for name in ordered]
    below = [value - figures[f"{MAIN}_low/{name}"] for name, value in zip(ordered, values, strict=True)]
    above = [figures[f"{MAIN}_high/{name}"] - value for name, value in zip(ordered, values, strict=True)]
    alone = {row.alone for row in rows}
    colours = ["tab:gray" if name in alone else "tab:blue" for name in ordered]
    chart, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(ordered)), layout="constrained")
    bars = axis.barh(ordered, values, xerr=[below, above], color=colours, capsize=2)
    axis.bar_label(bars, [f"{value:.4f}" for value in values], label_type="center", color="white", fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(f"{MAIN}, 95 % by user; blue: with the ranker")
    chart.savefig(path, dpi=120)
    plt.close(chart)
    return path


def _difference(figures: Mapping[str, float], name: str) -> str:
    if f"difference/{name}" not in figures:
        return ""
    low, high = figures[f"difference_low/{name}"], figures[f"difference_high/{name}"]
    return f"{figures[f'difference/{name}']:+.4f} ({low:+.4f} to {high:+.4f}, p = {figures[f'p_value/{name}']:.3f})"


if __name__ == "__main__":
    run_job(main)
