"""One side of a benchmark as a process of its own, and how much memory its whole family takes."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.errors import TowerlineError
from cluster.provenance import ROOT

SAMPLED_EVERY_S = 1.0
MEMORY_SHARE = 0.7
"""A side that takes more of the machine's memory is ended, so that the machine does not go down with it."""


@dataclass(frozen=True)
class Side:
    """What a side said of itself, and what was seen of it."""

    answer: dict[str, Any]
    peak_mb: float
    """Largest memory of all its processes at one time, a page that several of them share counted once (PSS)."""

    @property
    def wall_s(self) -> float:
        """Seconds that the work took, by its own clock: without starting Python, Ray or anything else."""
        return float(self.answer["wall_s"])


def run_side(arguments: Sequence[str | Path | int], python: str | Path = sys.executable) -> Side | None:
    """Run `python <arguments>` and read what it prints last as JSON; None if it needed too much memory.

    Raises TowerlineError with the end of its output if it fails.
    """
    command = [str(python), *(str(argument) for argument in arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watch = _Watch(process.pid, MEMORY_SHARE * psutil.virtual_memory().total)
        watch.start()
        output, _ = process.communicate()
        watch.join()
    if watch.was_too_much:
        return None
    if process.returncode:
        raise TowerlineError(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return Side(json.loads(output.strip().splitlines()[-1]), watch.peak / 1e6)


class _Watch(threading.Thread):
    """Samples the memory of a process and all that it started."""

    def __init__(self, pid: int, limit: float) -> None:
        super().__init__(daemon=True)
        self._process, self._limit = psutil.Process(pid), limit
        self.peak = 0.0
        self.was_too_much = False

    def run(self) -> None:
        """Until the process ends, or takes too much."""
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            self.peak = max(self.peak, self._now())
            if self.peak > self._limit:
                self.was_too_much = True
                self._process.kill()
            time.sleep(SAMPLED_EVERY_S)

    def _now(self) -> float:
        """Bytes."""
        total = 0.0
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return 0.0
        for process in family:
            total += proportional_memory(process.pid)
        return total


def proportional_memory(pid: int) -> float:
    """Bytes of a process, its share of shared pages included; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def memory_bandwidth() -> float:
    """GB/s of copying memory in one thread, read and written bytes counted: the best of a few copies of 256 MiB."""
    source = np.ones(2**25, dtype=np.int64)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds) / 1e9
