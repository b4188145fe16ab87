"""How a training is spread over workers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from train.horovod_options import HorovodOptions

if TYPE_CHECKING:
    from train.loop import FitConfig, TrainingTask


class Scaling(BaseModel):
    """How many processes train, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["horovod", "torch", "none"] = "horovod"
    """What averages the gradients: Horovod, torch DistributedDataParallel, or nothing: then the calling process
    trains alone, without Ray."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Worker processes; of no meaning with backend `none`. A pair is the fewest and the most: training starts with as
    many as fit, and goes on with fewer or more as nodes leave and join. The global batch stays the same."""

    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray sets aside for each worker; it trains with so many threads, at least one."""

    use_gpu: bool = False
    """One GPU per worker, and NCCL between them (by Horovod if it was built with it)."""

    horovod: HorovodOptions = HorovodOptions()
    """How Horovod exchanges gradients, with that backend."""

    resize_s: PositiveFloat = 60
    """Seconds between two looks at whether more workers would fit. Then all of them are started anew, which costs
    some ten seconds and what was done since the last checkpoint; of meaning with a pair of `num_workers`."""

    checkpoint_s: NonNegativeFloat = 60
    """Seconds between two checkpoints within an epoch (0: one after every step); there is always one after an
    epoch."""

    max_failures: NonNegativeInt = 2
    """How often a training goes on from its last checkpoint after a worker was lost."""

    timeout_s: PositiveInt = 60
    """Seconds for the workers to meet, and after which a silent one counts as lost."""

    stall_timeout_s: PositiveInt = 600
    """Seconds that workers wait for one that lives but does not come. Validation runs on one worker while the others
    wait, so it must take less."""

    start_timeout_s: NonNegativeInt = 60
    """Seconds to wait for resources that something else holds."""

    interface: str | None = None
    """Network interface between the workers, for Horovod; none: the one that holds the node's Ray address."""

    wait_for_nodes: bool = False
    """The cluster adds nodes on demand: wait for them, instead of refusing what does not fit now."""

    @field_validator("num_workers")
    @classmethod
    def _fewest_before_most(cls, num_workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(num_workers, tuple) and num_workers[0] > num_workers[1]:
            raise ValueError(f"num_workers is {list(num_workers)}, expected the fewest and the most, like [1, 4]")
        return num_workers

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        return not isinstance(self.num_workers, int)

    @property
    def min_workers(self) -> int:
        """With fewer, training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def decisive(self) -> dict[str, Any]:
        """What of this may change the outcome; the rest may differ when a training is gone on with."""
        decisive = self.model_dump(mode="json", include={"backend", "num_workers", "cpus_per_worker", "use_gpu"})
        if self.backend == "horovod":
            decisive |= self.horovod.model_dump(mode="json", include={"compression", "reduction"})
        return decisive


@dataclass(frozen=True)
class Work:
    """What travels to the workers."""

    build_task: "Callable[[Any], TrainingTask]"
    task_config: Any
    fit: "FitConfig"
    scaling: Scaling
    folder: Path
    """The run's own folder."""
