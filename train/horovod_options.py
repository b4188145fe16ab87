"""How Horovod exchanges gradients."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat

from cluster.errors import TowerlineError


class HorovodOptions(BaseModel):
    """Speed and size of the exchange; of no meaning with another backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket_mb: NonNegativeFloat = 25
    """MiB of gradients that are handed to Horovod together, as soon as the last of them is there; 0: each by itself.
    Smaller buckets leave earlier, larger ones cost less computing. Not with sparse gradients."""

    fusion_threshold_mb: NonNegativeFloat = 64
    """MiB of gradients, at most, that travel as one message; 0: each parameter's gradient by itself."""

    cycle_time_ms: PositiveFloat = 1
    """Milliseconds, at least, between two looks at which gradients are ready on all ranks. Gradients wait for the next
    look, and those that are ready then travel together; each look costs computing on every rank."""

    compression: Literal["none", "fp16"] = "none"
    """What dense gradients travel as: as they are, or as half-precision numbers, which halves the bytes and rounds to
    three digits. It pays where the network is slow, not between processes of one machine."""

    reduction: Literal["mean", "adasum"] = "mean"
    """How gradients become one: their mean, or Adasum (Maleki et al., 2021), which needs NCCL or MPI."""

    def environment(self) -> dict[str, str]:
        """What Horovod reads of it when it begins."""
        return {
            "HOROVOD_FUSION_THRESHOLD": str(int(self.fusion_threshold_mb * 2**20)),
            "HOROVOD_CYCLE_TIME": f"{self.cycle_time_ms:g}",
        }

    def require_possible(self, *, nccl: bool) -> None:
        """`nccl`: whether NCCL carries the gradients; without GPUs Gloo does.

        Raises:
            TowerlineError: Adasum over Gloo, which has none.
        """
        if self.reduction == "adasum" and not nccl:
            raise TowerlineError(
                "scaling.horovod.reduction is 'adasum', which Horovod has over NCCL and MPI alone, but here gradients "
                "travel over Gloo; set it to 'mean', or train on GPUs (scaling.use_gpu) with a Horovod built with NCCL"
            )
