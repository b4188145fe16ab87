"""Runs systems, each run a process of its own, some at a time, and searches their settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Lock
from typing import TypeVar

from benchmarks.quality_problem import Problem
from benchmarks.quality_runs import Processes, Run
from benchmarks.quality_scores import validation_score
from benchmarks.quality_search import Found, Trial, search, with_base
from benchmarks.quality_systems import Settings, System
from cluster.errors import TowerlineError
from data.splits import VALIDATION

Result = TypeVar("Result")


class Bench:
    """Runs systems, some at a time."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._processes = Processes()

    def run(
        self, systems: Sequence[System], problems: Mapping[Problem, int], found: Mapping[str, Found]
    ) -> dict[str, dict[str, list[Run]]]:
        """Every system on every problem it can be asked, with so many seeds: the finished runs by problem and name."""
        runs = {
            problem.name: {
                system.name: [
                    Run(system, problem, with_base(system, found[system.name].settings, found), seed)
                    for seed in range(seeds if system.seeded else 1)
                ]
                for system in systems
                if system.answers(problem.protocol)
            }
            for problem, seeds in problems.items()
        }
        self.finish(run for of_problem in runs.values() for of_system in of_problem.values() for run in of_system)
        return runs

    def finish(self, runs: Iterable[Run]) -> None:
        """All of them, those that take minutes first; a training that several share is done by the first."""
        chains: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: bool(run.system.above)):
            chains.setdefault(run.shared, []).append(run)
        slow_first = sorted(chains.values(), key=lambda chain: not any(run.system.slow for run in chain))
        self._all([partial(self._finish_chain, chain) for chain in slow_first])

    def search(
        self,
        systems: Sequence[System],
        problem: Problem,
        trials: int,
        found: Mapping[str, Found],
        keep: Callable[[str, Found], None],
    ) -> dict[str, Found]:
        """The settings of every system that has any to search for; what is built on another comes after it.

        `keep` is told what was found for a system as soon as it is: one call at a time.
        """
        lock = Lock()

        def searched(system: System, known: Mapping[str, Found]) -> Found:
            result = self._search(system, problem, trials, known)
            with lock:
                keep(system.name, result)
            return result

        results: dict[str, Found] = {}
        for later in (False, True):
            chosen = [system for system in systems if system.space and bool(system.above) == later]
            known = {**found, **results}
            done = self._all([partial(searched, system, known) for system in chosen])
            results |= dict(zip((system.name for system in chosen), done, strict=True))
        return results

    def _search(self, system: System, problem: Problem, trials: int, found: Mapping[str, Found]) -> Found:
        def attempt(settings: Settings) -> Trial:
            run = Run(system, problem, with_base(system, settings, found), seed=0, target=VALIDATION)
            try:
                self._finish(run)
            except TowerlineError as error:
                reason = str(error).strip().splitlines()[-1]
                print(f"{system.name}: 0 with {settings}, which cannot be trained: {reason}", flush=True)
                return Trial(settings, 0.0, 0.0)
            trial = Trial(settings, validation_score(run), float(run.answer()["seconds"]))
            print(f"{system.name}: {trial.score:.4f} with {settings}", flush=True)
            return trial

        return search(system, trials, attempt)

    def _finish_chain(self, chain: Sequence[Run]) -> None:
        for run in chain:
            self._finish(run)

    def _finish(self, run: Run) -> Run:
        kept = run.finished()
        self._processes.finish(run)
        answer = run.answer()
        own = "".join(f", its own {name} {value:.4f}" for name, value in answer["own"].items())
        epochs = f", {answer['epochs']} epochs" if answer.get("epochs", 1) > 1 else ""
        when = "kept" if kept else f"{answer['seconds']:.1f} s"
        print(f"{run.problem.name} {run.label or run.system.name} seed {run.seed}: {when}{epochs}{own}", flush=True)
        return run

    def _all(self, calls: Sequence[partial[Result]]) -> list[Result]:
        """The results in order; the first error ends what is running."""
        with ThreadPoolExecutor(self._parallel) as pool:
            futures: list[Future[Result]] = [pool.submit(call) for call in calls]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in futures if future.done() and future.exception()]
                return [future.result() for future in failed or futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._processes.end()
                raise
