"""Runs of systems, each a process of its own; a finished one is kept under a fingerprint of all that decides it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.environments import python_from
from benchmarks.peers import contract
from benchmarks.peers.contract import ANSWER_FILE, Task
from benchmarks.quality_problem import Problem
from benchmarks.quality_systems import PEERS, Settings, System
from cluster.errors import TowerlineError
from cluster.provenance import ROOT

OUR_RUNNER = "benchmarks.our_system"
OUR_CODE = ("train", "data/features.py", "benchmarks/our_system.py")
"""What decides the lists of our systems, the examples aside, which have a fingerprint of their own."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Of glibc: what large tensors give back is used again, else the kernel zeroes it anew, 40 % of SASRec's time."""


@dataclass(frozen=True)
class Run:
    """One training of a system on a problem, finished or not."""

    system: System
    problem: Problem
    settings: Settings
    """Its own, or by system where it is built on another."""
    seed: int
    target: str = "test"
    label: str = field(default="", compare=False)
    """For people, where the system's name does not tell it from others."""

    @property
    def shared(self) -> str:
        """The same for all runs that take the same training of what a ranker is built on."""
        base = self.system.above or self.system.name
        settings = self.settings[base] if self.system.above else self.settings
        return json.dumps([self.problem.name, base, settings, self.seed, self.target], sort_keys=True)

    @property
    def folder(self) -> Path:
        """Where its answer is or will be."""
        decisive = json.dumps([self.settings, self._fingerprint], sort_keys=True)
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:10]
        return self.problem.folder / "runs" / f"{self.system.name}-{self.target}-s{self.seed}-{digest}"

    @property
    def _fingerprint(self) -> str:
        """Of code and libraries and, for ours, of the features."""
        code = code_fingerprint(self.system.peer)
        return code if self.system.peer else f"{code}-{self.problem.examples.parent.name}"

    def finished(self) -> bool:
        """Whether the answer is there."""
        return (self.folder / ANSWER_FILE).exists()

    def answer(self) -> dict[str, Any]:
        """What the process said: `seconds`, `own`, …"""
        said: dict[str, Any] = json.loads((self.folder / ANSWER_FILE).read_text())
        return said

    def task(self, threads: int) -> Task:
        """What the process is told."""
        problem = self.problem
        ours = {
            "dataset": problem.dataset.name,
            "data_version": problem.dataset.manifest.data_version,
            "protocol": problem.protocol.model_dump_json(),
            "examples": str(problem.examples),
            "trained": str(problem.folder / "trained" / self._fingerprint),
        }
        return Task(
            run=str(self.folder),
            data=str(problem.events),
            system=self.system.name,
            settings=self.settings,
            seed=self.seed,
            target=self.target,
            trains_on_validation=self.system.trains_on_validation,
            threads=threads,
            extra={} if self.system.peer else ours,
        )


@cache
def code_fingerprint(peer: str) -> str:
    """Changes with the code and the libraries that decide what a peer's systems recommend, or ours if it is ''."""
    if peer:
        files = [PEERS / f"run_{peer}.py", PEERS / f"{peer}.txt", Path(contract.__file__)]
    else:
        places = [ROOT / name for name in OUR_CODE]
        files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:10]


@dataclass
class Processes:
    """Starts the processes of runs, and ends them if the benchmark ends."""

    threads: int = 1
    _live: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)
    _ended: bool = False

    def finish(self, run: Run) -> Run:
        """Run it, unless it is finished.

        Raises:
            TowerlineError: it failed; shows the end of its output.
            InterruptedError: the benchmark ends.
        """
        if run.finished():
            return run
        shutil.rmtree(run.folder, ignore_errors=True)
        run.task(self.threads).write()
        scratch = run.folder / "scratch"
        scratch.mkdir()
        peer = run.system.peer
        python = python_from(PEERS / f"{peer}.txt") if peer else Path(sys.executable)
        module = f"benchmarks.peers.run_{peer}" if peer else OUR_RUNNER
        command = [str(python), "-m", module, str(run.folder)]
        log = run.folder / "log"
        with log.open("wb") as output, self._started(command, scratch, output) as process:
            status = process.wait()
        if self._ended:
            raise InterruptedError("the benchmark ends")
        # Writing the answer is the last thing it does: what happens to a library while it is torn down is no failure.
        if not run.finished():
            said = log.read_text(errors="replace")[-2000:]
            raise TowerlineError(
                f"{run.system.name} failed on {run.problem.name} (status {status}); see {log}:\n{said}"
            )
        shutil.rmtree(scratch)
        return run

    @contextmanager
    def _started(self, command: list[str], scratch: Path, output: Any) -> Iterator["subprocess.Popen[bytes]"]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        environment = {**os.environ, **threads, **KEEP_MEMORY, "PYTHONPATH": str(ROOT)}
        with self._lock:
            if self._ended:
                raise InterruptedError("the benchmark ends")
            process = subprocess.Popen(command, cwd=scratch, env=environment, stdout=output, stderr=subprocess.STDOUT)
            self._live.add(process)
        try:
            with process:
                yield process
        finally:
            with self._lock:
                self._live.discard(process)

    def end(self) -> None:
        """End what is running, and let nothing more run."""
        with self._lock:
            self._ended = True
            for process in self._live:
                process.kill()
