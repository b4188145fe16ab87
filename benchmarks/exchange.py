"""What the exchange of gradients costs two ranks: time, and bytes on the wire. Without Ray, one thread a rank."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from train.horovod_options import HorovodOptions
from train.loop import TrainingTask
from train.rendezvous import Rendezvous, assign_slots, find_interface, slot_environment

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Exchange:
    """What to measure."""

    build_task: Callable[[Any], TrainingTask]
    task_config: Any
    backend: Literal["horovod", "torch"] = "horovod"
    horovod: HorovodOptions = field(default_factory=HorovodOptions)
    backward_passes_per_step: int = 1
    rounds: int = 5
    """How often the ranks take steps with the exchange and then without."""
    steps: int = 16
    """Batches of each rank in a round, of either kind."""


@dataclass(frozen=True)
class ExchangeCost:
    """Of one batch on rank 0; medians over the rounds."""

    seconds: float
    """Forward, backward, exchange and the optimizer's step."""
    seconds_alone: float
    """The same beside the same ranks, but each for itself."""
    cpu_seconds: float
    """Of `seconds`, what all threads of rank 0 computed; on a busy machine the steadier of the two."""
    cpu_seconds_alone: float
    """Of `seconds_alone`."""
    bytes_sent: float
    """To the other ranks, everything that Horovod or Gloo says included."""
    examples: float
    """Of the global batch."""
    peak_mb: float
    """The most memory that rank 0 held until it had taken its first steps with the exchange."""

    @property
    def share(self) -> float:
        """Of the time, what goes when the exchange goes."""
        return 1 - self.seconds_alone / self.seconds

    @property
    def cpu_share(self) -> float:
        """The same of the computing."""
        return 1 - self.cpu_seconds_alone / self.cpu_seconds

    @property
    def samples_per_s(self) -> float:
        """Of all ranks together."""
        return self.examples / self.seconds


def measure(exchange: Exchange, size: int = 2) -> ExchangeCost:
    """Start `size` ranks on this machine and let them measure.

    Raises:
        TowerlineError: a rank failed; with the end of what it said.
    """
    slots = assign_slots(["here"] * size)
    with tempfile.TemporaryDirectory(prefix="exchange-") as folder, Rendezvous(HOST, slots) as rendezvous:
        plan, result = Path(folder) / "plan", Path(folder) / "result"
        plan.write_bytes(pickle.dumps(exchange))
        interface = find_interface(HOST)
        ranks = []
        for slot in slots:
            environment = slot_environment(slot, HOST, rendezvous.port)
            environment |= {"HOROVOD_GLOO_IFACE": interface, "GLOO_SOCKET_IFNAME": interface}
            environment |= exchange.horovod.environment()
            command = [sys.executable, "-m", "benchmarks.exchange_ranks", str(plan), str(result)]
            log = (Path(folder) / f"log-{slot.rank}").open("w")
            with log:
                ranks.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log))
        try:
            failed = [rank for rank, process in enumerate(ranks) if process.wait()]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if failed:
            said = (Path(folder) / f"log-{failed[0]}").read_text()
            raise TowerlineError(f"rank {failed[0]} of {size} failed ({exchange.backend}):\n{said[-2000:]}")
        return ExchangeCost(**json.loads(result.read_text()))


def cost_figures(name: str, runs: Sequence[ExchangeCost]) -> dict[str, float]:
    """What `runs` of one exchange cost, each figure under its `name`: medians, and of memory the most."""
    return {
        f"exchange_samples_per_s/{name}": median(run.samples_per_s for run in runs),
        f"exchange_cpu_ms_per_batch/{name}": median(run.cpu_seconds for run in runs) * 1e3,
        f"communication_share/{name}": median(run.share for run in runs),
        f"communication_cpu_share/{name}": median(run.cpu_share for run in runs),
        f"kb_per_batch/{name}": median(run.bytes_sent for run in runs) / 1e3,
        f"exchange_peak_mb/{name}": max(run.peak_mb for run in runs),
    }
