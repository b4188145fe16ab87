"""Our models beside other people's, on one split, by one evaluator; `make bench-quality`.

    python -m benchmarks.quality --dataset movielens-100k --seeds 3
    python -m benchmarks.quality --search
    python -m benchmarks.quality --search missing

Every system takes the settings that a search found for it (`benchmarks/settings`), and runs in a process of its own;
peers have environments of their own, set up in the cache. A run that is finished is kept, so that a benchmark that was
interrupted goes on; it runs again when its code, its libraries, its settings or the data change.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import polars as pl

from benchmarks.environments import python_from
from benchmarks.quality_bench import Bench
from benchmarks.quality_problem import Problem
from benchmarks.quality_report import Panel, print_problem, print_settings, print_tests, print_trials, write_picture
from benchmarks.quality_scores import Comparison, compare, figures_of, paired_figures
from benchmarks.quality_search import Found, read_settings, write_settings
from benchmarks.quality_systems import PEERS, SYSTEMS, System
from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings as Places
from data.dataset import Dataset, list_datasets, open_dataset
from data.offline.pipeline import build_examples, examples_folder
from data.parallel import on_ray_when_needed
from train.protocols import EvaluationProtocol, GlobalTime, LeaveOneOut, StrongGeneralisation
from train.user_values import averaged, write_user_values

MOVIELENS = "movielens-100k"
TRIALS = 4
PROTOCOLS: dict[str, EvaluationProtocol] = {
    "leave_one_out": LeaveOneOut(),
    "leave_one_out_1": LeaveOneOut(cut_off=1),
    "leave_one_out_2": LeaveOneOut(cut_off=2),
    "global_time": GlobalTime(),
    "strong_generalisation": StrongGeneralisation(),
}
BY_DEFAULT = [name for name, protocol in PROTOCOLS.items() if not protocol.new_users]
CUT_OFFS = [name for name in PROTOCOLS if name.startswith("leave_one_out")]
SEARCHED_ON = CUT_OFFS[-1]
"""The oldest: its validation events are no cut-off's test."""
PROTOCOL = """\
All systems are given the same events and asked for 100 items of the full catalogue; our evaluator scores the lists, \
and a library that has a metric of its own must agree with it on the same lists. A list that is short, or of a user \
whom a system does not know, is filled up with the most popular items. What our ranker reads of an item, too, are its \
training events alone. Validation events choose the epoch to stop at; \
then a system either trains on them as well, for as many epochs, or reads them as history alone, as the table says. \
Settings are the best of equally many trials of the same sampler for every system, by NDCG@10 on the validation \
events of the oldest cut-off; the other protocols take the same settings. Strong \
generalisation asks only systems that can be told of users they did not learn from, and none trains on its \
validation users. Each system is a process with so many \
threads as the configuration says, at most so many at a time. Seconds: training, with all that it is built on, and \
recommending. Intervals: 95 %, bootstrap by user of seed-averaged values; tests: paired, on the last three cut-offs \
together, users drawn with all their values. """


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    option = parser.add_argument
    option("--dataset", default=MOVIELENS, help=f"name of an ingested data set; {MOVIELENS} is ingested if need be")
    option("--seeds", type=int, default=3, help="of what a seed changes, on the first protocol")
    option("--other-seeds", type=int, default=1, help="on the other protocols")
    option("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS))
    option("--protocols", nargs="+", choices=PROTOCOLS, default=BY_DEFAULT, help="the first is the main one")
    option(
        "--search",
        nargs="?",
        const="all",
        choices=("all", "missing"),
        help="search each system's settings first, and keep them; missing: of systems with fewer trials stored",
    )
    option("--trials", type=int, default=TRIALS, help="of the search, for each system")
    option("--parallel", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time, one thread each")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Search if asked to, run, score, report."""
    asked, places = parse(arguments), Places()
    clock = ReportClock("bench_quality")
    systems = [SYSTEMS[name] for name in asked.systems]
    for name in asked.protocols:
        if not any(system.answers(PROTOCOLS[name]) for system in systems):
            raise TowerlineError(f"none of --systems can be asked by {name}; take one more, such as ease")
    dataset = opened(places, asked.dataset)
    problems = prepared(places, dataset, {*asked.protocols, *([SEARCHED_ON] if asked.search else [])})
    for peer in dict.fromkeys(system.peer for system in systems if system.peer):
        python_from(PEERS / f"{peer}.txt")
    found = read_settings(dataset.name, list(SYSTEMS.values()))
    bench = Bench(asked.parallel)
    if asked.search:
        wanted = systems if asked.search == "all" else unsearched(systems, found, asked.trials)
        words = f"{asked.trials} trials each, on the validation events of: {problems[SEARCHED_ON].protocol.words}"

        def keep(name: str, result: Found) -> None:
            print(f"settings of {name}: {write_settings(dataset.name, {name: result}, words)}", flush=True)

        results = bench.search(wanted, problems[SEARCHED_ON], asked.trials, found, keep)
        print_trials(results)
        found |= results
    seeds = dict.fromkeys(asked.protocols, asked.other_seeds) | {asked.protocols[0]: asked.seeds}
    runs = bench.run(systems, {problems[name]: count for name, count in seeds.items()}, found)
    comparisons = {name: compare(problems[name], runs[name]) for name in asked.protocols}
    print_settings(found, asked.systems)
    report(clock, places, asked, comparisons, found)


def unsearched(systems: Sequence[System], found: Mapping[str, Found], trials: int) -> list[System]:
    """Those with fewer stored trials than `trials`, and those that are built on one of them."""
    missing = {system.name for system in systems if system.space and len(found[system.name].trials) < trials}
    return [system for system in systems if {system.name, system.above} & missing]


def opened(places: Places, name: str) -> Dataset:
    """A data set; MovieLens-100K is ingested if it is asked for and not there."""
    if name == MOVIELENS and name not in list_datasets(places.home):
        from cluster.assets import MOVIELENS_100K, fetch
        from data.ingest.ingestion import ingest_movielens
        from data.parallel import in_process

        ingest_movielens(places.home, fetch(MOVIELENS_100K), datetime.now(UTC), run=in_process)
    return open_dataset(places.home, name)


def prepared(places: Places, dataset: Dataset, protocols: set[str]) -> dict[str, Problem]:
    """The problems as files. Ray is started if the examples have to be built."""
    examples = examples_folder(places.home, dataset)
    with ExitStack() as session:
        build_examples(dataset, examples, run=on_ray_when_needed(places, session))
    root = places.home / "bench" / "quality" / dataset.name
    problems = {
        name: Problem(name, dataset, PROTOCOLS[name], examples, root) for name in PROTOCOLS if name in protocols
    }
    for problem in problems.values():
        problem.prepare()
    return problems


def report(
    clock: ReportClock,
    places: Places,
    asked: argparse.Namespace,
    comparisons: Mapping[str, Comparison],
    found: Mapping[str, Found],
) -> None:
    """Tables, picture, JSON and the values per user."""
    systems = asked.systems
    figures = figures_of(comparisons, systems)
    main_name = asked.protocols[0]
    titles = {"" if name == main_name else f"/{name}": name for name in comparisons if _has_table(name, main_name)}
    protocols = {name: each.problem.protocol for name, each in comparisons.items()}
    for place, name in titles.items():
        sentence = f"{asked.dataset}, {protocols[name].words} (protocol {protocols[name].hash})"
        print_problem(figures, comparisons[name].systems, protocols[name], sentence, place)
    pooled = [each.values for name, each in comparisons.items() if name in CUT_OFFS]
    if pooled:
        figures |= paired_figures(averaged(pooled), comparisons[main_name], systems)
        print_tests(figures, systems)
    settings = {name: found[name].settings for name in systems}
    finished = clock.finish(
        config={**vars(asked), "settings": settings, "searched": {name: len(found[name].trials) for name in systems}},
        protocol=PROTOCOL + "; ".join(f"{name}: {each.hash}, {each.words}" for name, each in protocols.items()),
        data_version=next(iter(comparisons.values())).problem.dataset.manifest.data_version,
        figures=figures,
    )
    path = finished.write(places.home)
    values = pl.concat([each.values for each in comparisons.values()], how="diagonal")
    write_user_values(values, places.home, finished)
    panels = [
        Panel(f"{asked.dataset}, {name} ({each.problem.protocol.hash})", place, each.main, each.systems)
        for place, name in titles.items()
        for each in [comparisons[name]]
    ]
    picture = write_picture(figures, panels, path.with_suffix(".png"))
    print(f"report {path}, picture {picture}, {finished.seconds:.0f} s")


def _has_table(protocol: str, main_protocol: str) -> bool:
    """The other cut-offs are for the tests alone."""
    return protocol == main_protocol or protocol not in CUT_OFFS


if __name__ == "__main__":
    run_job(main)
