"""What `benchmarks.training` trains: the real two-tower, on some of its examples."""

import time
from dataclasses import dataclass
from pathlib import Path

from train.order import ExampleOrder
from train.retrieval import RetrievalTask, RetrievalTaskConfig

PEAK_MB, CPU_S = "peak_mb", "cpu_s"


@dataclass(frozen=True)
class BenchTaskConfig:
    """What a process needs to build its `BenchTask`."""

    retrieval: RetrievalTaskConfig
    examples: int
    """How many of them make an epoch."""


class BenchTask(RetrievalTask):
    """A retrieval task that measures its process instead of its model."""

    def __init__(self, config: BenchTaskConfig) -> None:
        super().__init__(config.retrieval)
        settings = config.retrieval.config
        self.order = ExampleOrder(self.order.row_ids[: config.examples], settings.batch_size, settings.seed)

    def validate(self) -> dict[str, float]:
        """The most memory that this process has held so far, in MB, and the seconds that it has computed."""
        return {PEAK_MB: peak_mb(), CPU_S: time.process_time()}


def peak_mb() -> float:
    """The largest resident memory of this process's life."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
