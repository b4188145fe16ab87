"""How the ranks of one training talk: nothing at all, Horovod, or torch's own DistributedDataParallel.

The loop (`train.loop`) knows only `Communicator`. All three implementations mean the same: the gradient that the
optimizer sees is the mean over ranks, so a loss of (sum over this rank's examples) * size / (examples in the global
batch) gives the same step for every size, up to floating-point error.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import NoReturn, Protocol, TypeVar

import torch
import torch.distributed
from torch import nn
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from train.gradients import buckets, sparse_embeddings
from train.horovod_options import HorovodOptions
from train.optimizer_state import share_optimizer_state
from train.rendezvous import initialized_horovod

Value = TypeVar("Value")


class Communicator(Protocol):
    """The ranks of one training; every method is collective: each rank calls it, in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes train together."""

    @property
    def device(self) -> torch.device:
        """Where this rank's model and batches live."""

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, backward_passes_per_step: int = 1
    ) -> tuple[nn.Module, Optimizer]:
        """Give every rank rank 0's parameters, buffers and optimizer state, and average gradients from now on.

        `model` is on `device` already. Call the returned model for the loss and step the returned optimizer; the
        parameters stay the ones of `model`, which is what to validate and to save. There are at most
        `backward_passes_per_step` backward passes to a step, all but the last of them within `accumulating`.
        """

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Forward and backward passes in here add to this rank's own gradients; `model` is what `prepare` returned."""

    def allreduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of `tensor` over the ranks, as a new tensor."""

    def broadcast(self, value: Value) -> Value:
        """Rank 0's `value`, any small picklable object."""

    def close(self) -> None:
        """Leave; other ranks need not be there any more. May be called twice."""


class SingleProcess:
    """One process: nothing to say to anyone."""

    rank = 0
    size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, backward_passes_per_step: int = 1
    ) -> tuple[nn.Module, Optimizer]:
        """Both as they are."""
        return model, optimizer

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients are never anyone else's."""
        return nullcontext()

    def allreduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return tensor.clone()

    def broadcast(self, value: Value) -> Value:
        """The value itself."""
        return value

    def close(self) -> None:
        """Nothing to leave."""


class HorovodCommunicator:
    """Horovod's ring of processes. The rendezvous comes from `HOROVOD_*`, which `train.horovod_backend` sets."""

    def __init__(self, use_gpu: bool = False, options: HorovodOptions | None = None) -> None:
        """Join the other ranks.

        Raises:
            TowerlineError: Horovod is missing, its ranks did not meet, there are fewer GPUs than ranks here, or the
                options ask for what this Horovod lacks.
        """
        self._options = options or HorovodOptions()
        self._horovod = initialized_horovod()
        self._options.require_possible(nccl=use_gpu and bool(self._horovod.nccl_built()))
        self.rank = int(self._horovod.rank())
        self.size = int(self._horovod.size())
        self.device = _local_device(use_gpu, int(self._horovod.local_rank()))

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, backward_passes_per_step: int = 1
    ) -> tuple[nn.Module, Optimizer]:
        """The optimizer's class is replaced by one that averages gradients as they appear in the backward pass.

        Dense gradients are handed over by the bucket: by themselves, small ones cost more computing than the exchange.
        Sparse ones travel as their rows, each once.
        """
        horovod = self._horovod
        # Horovod sends no booleans, but the bytes that they are.
        state = {
            name: value.view(torch.uint8) if value.dtype == torch.bool else value
            for name, value in model.state_dict().items()
        }
        horovod.broadcast_parameters(state, root_rank=0)
        sparse = sparse_embeddings(model)
        for name in sparse:
            model.get_parameter(name).register_hook(torch.Tensor.coalesce)  # type: ignore[no-untyped-call]
        # Horovod builds a new optimizer of the same parameter groups and forgets the state of the old one.
        optimizer_state = optimizer.state_dict()
        distributed: Optimizer = horovod.DistributedOptimizer(
            optimizer,
            named_parameters=list(model.named_parameters()),
            compression=getattr(horovod.Compression, self._options.compression),
            backward_passes_per_step=backward_passes_per_step,
            op=horovod.Adasum if self._options.reduction == "adasum" else horovod.Average,
            # Horovod cannot group sparse gradients.
            groups=None if sparse else buckets(model, self._options.bucket_mb),
        )
        distributed.load_state_dict(optimizer_state)
        share_optimizer_state(self, distributed, self._broadcast_tensor)
        return model, distributed

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """The optimizer counts the passes itself."""
        return nullcontext()

    def allreduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Horovod's allreduce with Average."""
        mean: torch.Tensor = self._horovod.allreduce(tensor, op=self._horovod.Average)
        return mean

    def broadcast(self, value: Value) -> Value:
        """Pickled and sent as bytes."""
        received: Value = self._horovod.broadcast_object(value, root_rank=0)
        return received

    def close(self) -> None:
        """Stop Horovod's background thread; a new communicator may be made afterwards."""
        self._horovod.shutdown()

    def _broadcast_tensor(self, tensor: torch.Tensor) -> None:
        self._horovod.broadcast_(tensor, root_rank=0)


class TorchDistributedCommunicator:
    """torch's DistributedDataParallel over Gloo (CPU) or NCCL (GPU)."""

    def __init__(self, use_gpu: bool = False, local_rank: int = 0) -> None:
        """Use the process group that exists (Ray Train's `TorchConfig` makes one).

        Raises:
            TowerlineError: there is no process group, or there are fewer GPUs than ranks here.
        """
        if not torch.distributed.is_initialized():
            raise TowerlineError(
                "torch.distributed has no process group; train with backend 'torch', which makes one, "
                "or call TorchDistributedCommunicator.meet(...)"
            )
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self.device = _local_device(use_gpu, local_rank)
        self._owns_group = False

    @classmethod
    def meet(
        cls, address: str, rank: int, size: int, *, use_gpu: bool = False, local_rank: int = 0, timeout_s: float = 60
    ) -> "TorchDistributedCommunicator":
        """Make a process group of `size` ranks without Ray; `address` is `tcp://host:port` or `file:///path`.

        Raises:
            TowerlineError: the ranks did not meet within `timeout_s` seconds.
        """
        try:
            torch.distributed.init_process_group(
                "nccl" if use_gpu else "gloo",
                init_method=address,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_s),
            )
        except RuntimeError as error:  # of which torch.distributed.DistError is one; Gloo raises others
            raise TowerlineError(
                f"rank {rank} of {size} did not meet the others at {address} within {timeout_s:g} s ({error}); "
                "check that all ranks were started and that the address can be reached from each of them"
            ) from error
        communicator = cls(use_gpu, local_rank)
        communicator._owns_group = True
        return communicator

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, backward_passes_per_step: int = 1
    ) -> tuple[nn.Module, Optimizer]:
        """The model is wrapped, which shares parameters and buffers; buffers not again before each step.

        Raises:
            TowerlineError: a gradient is sparse and would travel over NCCL.
        """
        sparse = sparse_embeddings(model)
        if sparse and self.device.type == "cuda":
            raise TowerlineError(
                f"the gradient of {', '.join(sparse)} is sparse, which torch DDP cannot exchange over NCCL; "
                "train with scaling.backend 'horovod', or set sparse=False"
            )
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            forward_sync_buffers=False,
        )
        share_optimizer_state(self, optimizer, self._broadcast_tensor)
        return wrapped, optimizer

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """DDP is told."""
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        waiting: AbstractContextManager[None] = model.no_sync()
        return waiting

    def allreduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, divided by their number (Gloo knows no mean)."""
        total = tensor.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return (total / self.size).to(tensor.device)

    def broadcast(self, value: Value) -> Value:
        """Pickled and sent as bytes."""
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def close(self) -> None:
        """Destroy the process group if `meet` made it."""
        if self._owns_group and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _broadcast_tensor(self, tensor: torch.Tensor) -> None:
        on_device = tensor.to(self.device)
        torch.distributed.broadcast(on_device, src=0)
        if on_device is not tensor:
            tensor.copy_(on_device)


def end_rank() -> NoReturn:
    """End this process, which was a rank without Ray and has left its results, with status 0 and no tear-down.

    A thread of torch's Gloo may still be letting go of a tensor, for which it needs the interpreter's lock. An
    interpreter that is ending answers by ending that thread, and C++ answers that with an abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _local_device(use_gpu: bool, local_rank: int) -> torch.device:
    """The CPU, or the GPU with this local rank's number among those that this process sees."""
    if not use_gpu:
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise TowerlineError(
            f"local rank {local_rank} asks for a GPU of its own but this process sees {visible}; "
            "ask for fewer workers per node, or train with use_gpu=False"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
