"""Our serving graph beside what one would write by hand, BentoML and the usual Ray Serve way; `make bench-serving`.

    python -m benchmarks.serving --rounds 2 --seconds 6

The sides take turns, each with the whole machine for itself, and are asked by `wrk` from the same machine.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import llm_serving
from benchmarks.serving_champion import require_champion
from benchmarks.serving_load import COUNT, Load, load, write_bodies, wrk_binary
from benchmarks.serving_report import goal_figures, print_figures, write_picture
from benchmarks.serving_sides import Running, Side, lists_of, sides, started
from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.ray_start import free_port
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.schema import USER_ID

DATASET = "movielens-100k"
CONNECTIONS = (1, 16, 64)
COMPARED_USERS = 50
LEAST_EQUAL = 0.9
"""Of the lists of two sides. Features are as of now, so that a near tie may fall another way a minute later."""
PROTOCOL = f"""\
The champion pair answers POST /v1/recommend for {COUNT} items: one read of the user's features from the store, \
retrieval of 100 candidates, filter, one read of their features, ranking, the decision log on. wrk asks from the same \
machine with one thread, keep-alive connections, users of the data set in one shuffled order. The sides take turns, \
each alone on the machine, each round in the opposite order: start, warm-up, 1, 16 and 64 connections. Figures are \
medians over the rounds; rps counts good answers only, failures are all others. CPU: all processes of a side, Ray's \
own among them. Before the load, all sides answer {COMPARED_USERS} users with the same lists. in_process, remote and \
all_remote have one gateway (in_process_r2: two) and one replica of each remote stage. fastapi: uvicorn, one process, \
the same stages called one request at a time. fastapi_tuned: two uvicorn workers, each with a micro-batcher and a \
thread for the stages. serve_default: Ray Serve's defaults, a deployment a stage, @ray.serve.batch at the callee. \
bentoml: a service of BentoML, two workers with its adaptive batching, no access log. noop: a gateway in our \
profile that only reads the request. The language model: \
{llm_serving.PROTOCOL}"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=6, help="of each load")
    parser.add_argument("--warm-up", type=int, default=4, help="seconds")
    parser.add_argument("--sides", nargs="+", help="some of them only, and no language model")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure, compare, and report."""
    asked, settings = parse(arguments), Settings()
    wrk_binary()
    clock = ReportClock("bench_serving")
    dataset = require_champion(settings, asked.dataset)
    folder = settings.home / "bench" / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sides(asked.dataset, folder)
    if asked.sides:
        if unknown := set(asked.sides) - set(chosen):
            raise TowerlineError(f"--sides names {', '.join(sorted(unknown))}; there are {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in asked.sides}
    users = dataset.events()[USER_ID].unique().sort().to_list()
    bench = Bench(settings, asked, folder, write_bodies(users, folder / "bodies.jsonl"), users[:COMPARED_USERS])
    figures = bench.run(list(chosen.values()))
    if not asked.sides:
        figures |= llm_serving.measure(settings.model_copy(update={"serve_port": free_port()}), asked.dataset)
    figures |= goal_figures(figures)
    report = clock.finish(
        config=vars(asked), protocol=PROTOCOL, data_version=dataset.manifest.data_version, figures=figures
    )
    print_figures(figures)
    path = report.write(settings.home)
    print(f"report {path}, picture {write_picture(figures, path.with_suffix('.png'))}")


class Bench:
    """One run."""

    def __init__(
        self, settings: Settings, asked: argparse.Namespace, folder: Path, bodies: Path, compared: list[str]
    ) -> None:
        self._settings = settings
        self._asked = asked
        self._folder = folder
        self._bodies = bodies
        self._compared = compared
        self._decisions = settings.home / "decisions" / asked.dataset
        self._expected: list[tuple[str, ...]] = []
        self._seen: dict[str, list[float]] = defaultdict(list)

    def run(self, chosen: Sequence[Side]) -> dict[str, float]:
        """The figures of all sides, medians over the rounds."""
        for number in range(self._asked.rounds):
            for side in chosen if number % 2 == 0 else reversed(chosen):
                logged = set(self._decisions.rglob("*.jsonl"))
                with started(side, self._settings, self._folder / f"{side.name}.log") as running:
                    self._measure(side, running)
                # Minutes of load are gigabytes of decisions that nobody made.
                for path in set(self._decisions.rglob("*.jsonl")) - logged:
                    path.unlink()
        return {name: median(values) for name, values in self._seen.items()}

    def _measure(self, side: Side, running: Running) -> None:
        self._seen[f"start_s/{side.name}"].append(running.start_s)
        if side.recommends:
            self._require_equal(side, lists_of(running.url, self._compared))
        load(running.url, self._bodies, CONNECTIONS[1], self._asked.warm_up)
        for connections in CONNECTIONS:
            before = running.cpu_s()
            found = load(running.url, self._bodies, connections, self._asked.seconds)
            self._note(f"{side.name}/c{connections}", found, running.cpu_s() - before)
        self._seen[f"replica_mb/{side.name}"].append(running.replica_mb())
        self._seen[f"all_mb/{side.name}"].append(running.all_mb())

    def _note(self, place: str, found: Load, cpu_s: float) -> None:
        measured = {
            "rps": found.rps,
            "p50_ms": found.p50_ms,
            "p99_ms": found.p99_ms,
            "cpu_ms_per_request": 1e3 * cpu_s / max(found.requests, 1),
            "failures": float(found.failures),
        }
        for metric, value in measured.items():
            self._seen[f"{metric}/{place}"].append(value)
        words = ", ".join(f"{metric} {value:.4g}" for metric, value in measured.items())
        print(f"{place}: {words}", flush=True)

    def _require_equal(self, side: Side, found: list[tuple[str, ...]]) -> None:
        """Raise TowerlineError if this is not the same service."""
        self._expected = self._expected or found
        equal = sum(mine == theirs for mine, theirs in zip(found, self._expected, strict=True)) / len(found)
        if equal < LEAST_EQUAL:
            raise TowerlineError(
                f"side {side.name} answers {equal:.0%} of {len(found)} users as the first side does, expected "
                f"{LEAST_EQUAL:.0%} or more: it is not the same service; see its log in {self._folder}"
            )


if __name__ == "__main__":
    run_job(main)
