"""The memory of a running service over time."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.faults import replicas
from benchmarks.processes import proportional_memory
from benchmarks.sampling import sampled

SAMPLED_EVERY_S = 1.0


@dataclass(frozen=True)
class Sample:
    """Memory at one moment (PSS, shared pages in proportion)."""

    at: float
    """Moment of `time.monotonic`."""
    gateway_mb: float
    """Of the largest replica of the gateway."""
    all_mb: float
    """Of all that this process started, itself left out."""


def memory_watch() -> AbstractContextManager[list[Sample]]:
    """The samples so far, one more each second until the block ends."""
    return sampled(_sample, SAMPLED_EVERY_S)


def _sample() -> Sample:
    gateways = [proportional_memory(process.pid) for process in replicas("Gateway")]
    everything = [proportional_memory(process.pid) for process in psutil.Process().children(recursive=True)]
    return Sample(time.monotonic(), max(gateways, default=0.0) / 1e6, sum(everything) / 1e6)


def change(samples: Sequence[Sample]) -> dict[str, float]:
    """MB in the first and in the last tenth of the samples (medians)."""
    tenth = max(1, len(samples) // 10)
    figures = {}
    for name in ("gateway", "all"):
        values = [getattr(sample, f"{name}_mb") for sample in samples]
        figures[f"memory_mb/{name}/start"] = median(values[:tenth])
        figures[f"memory_mb/{name}/end"] = median(values[-tenth:])
    return figures
