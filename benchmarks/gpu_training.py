"""The two-tower on one GPU, and how much of the GPU's memory bandwidth its steps achieve."""

import time
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.plain_training import train
from benchmarks.training_task import BenchTask

COPIED_BYTES = 2**30


def gpu_figures(
    task: BenchTask, device: torch.device, epochs: int, copied_bytes: int = COPIED_BYTES
) -> dict[str, float]:
    """Samples per second on `device`; bytes that a step reads and writes; the bandwidth that this makes, and its share.

    The share is of a plain copy's bandwidth, measured here. What a cache saves is counted as if it came from memory.
    """
    answer = train(task, 1 + epochs, device)
    seconds = median(answer["seconds"][1:])
    moved = step_bytes(task, device) * task.order.batches_from(0) / seconds
    copy = copy_bandwidth(device, copied_bytes)
    return {
        f"samples_per_s/plain/{device.type}": len(task.order) / seconds,
        f"gb_per_s/step/{device.type}": moved / 1e9,
        f"gb_per_s/copy/{device.type}": copy / 1e9,
        f"bandwidth_share/{device.type}": moved / copy,
    }


def step_bytes(task: BenchTask, device: torch.device) -> int:
    """Bytes of all that the kernels of one training step take and give."""
    model, optimizer = task.model.to(device).train(), task.optimizer()
    batch = task.batch(next(task.order.shares(0, 0, 1))).to(device)
    model(batch).backward()
    optimizer.step()  # The first step makes the optimizer's state.
    optimizer.zero_grad()
    with _Traffic() as traffic:
        model(batch).backward()
        optimizer.step()
    return int(traffic.bytes)


def copy_bandwidth(device: torch.device, copied_bytes: int = COPIED_BYTES) -> float:
    """Bytes a second, read and written ones, of the best of a few copies of one large tensor to another."""
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * copied_bytes / min(seconds)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the tensors that go into kernels and come out; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result
