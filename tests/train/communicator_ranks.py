"""What a rank of the communicator tests does: `python -m tests.train.communicator_ranks KIND FOLDER RANK ADDRESS`."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.wire import bytes_sent
from cluster.errors import TowerlineError
from tests.train.table_task import PASSES, TableConfig, fitted
from tests.train.toy_task import ToyConfig, ToyTask
from train.communicator import (
    Communicator,
    HorovodCommunicator,
    SingleProcess,
    TorchDistributedCommunicator,
    end_rank,
)
from train.horovod_options import HorovodOptions

HOROVOD = {
    "horovod": HorovodOptions(),
    "horovod with options": HorovodOptions(bucket_mb=0, fusion_threshold_mb=0, cycle_time_ms=2.5, compression="fp16"),
}

STEPS = 5


def train_steps(communicator: Communicator) -> dict[str, Any]:
    """Gradients of the first step and weights after `STEPS`. Ranks begin with weights of their own, to be replaced."""
    task = ToyTask(ToyConfig(init_seed=communicator.rank))
    model, optimizer = communicator.prepare(task.model, task.optimizer())
    gradients: dict[str, torch.Tensor] = {}
    for epoch in range(STEPS):
        share = next(task.order.shares(epoch, communicator.rank, communicator.size))
        optimizer.zero_grad()
        model(task.batch(share)).backward()
        optimizer.step()
        if epoch == 0:
            gradients = {name: _gradient(parameter) for name, parameter in task.model.named_parameters()}
    return {
        "gradients": gradients,
        "weights": task.model.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "mean": communicator.allreduce_mean(torch.tensor([communicator.rank, 10.0], dtype=torch.float64)),
        "broadcast": communicator.broadcast({"rank": communicator.rank}),
    }


def share_state(communicator: Communicator) -> dict[str, torch.Tensor]:
    """What this rank's optimizer knows after `prepare`, when rank 0 alone had trained before."""
    task = ToyTask(ToyConfig(init_seed=communicator.rank))
    optimizer = task.optimizer()
    if communicator.rank == 0:
        task.model(task.batch(next(task.order.shares(1, 0, 1)))).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.25
    _, prepared = communicator.prepare(task.model, optimizer)
    state = prepared.state_dict()
    flat = {f"{i}/{name}": value for i, values in state["state"].items() for name, value in values.items()}
    weights = dict(task.model.state_dict())
    return flat | weights | {"learning rate": torch.tensor(state["param_groups"][0]["lr"])}


def adasum(_: Communicator) -> dict[str, Any]:
    """What one is told who asks for Adasum over Gloo."""
    try:
        HorovodCommunicator(options=HorovodOptions(reduction="adasum"))
    except TowerlineError as error:
        return {"error": str(error)}
    return {"error": ""}


def lose_a_peer(communicator: Communicator) -> dict[str, Any]:
    """How long rank 0 takes to notice that rank 1 is no more."""
    communicator.allreduce_mean(torch.zeros(1))
    if communicator.rank == 1:
        os._exit(0)
    started = time.monotonic()
    try:
        communicator.allreduce_mean(torch.ones(1000))
    except Exception as error:  # noqa: BLE001  each library has its own
        return {"seconds": time.monotonic() - started, "error": str(error)}
    return {"seconds": None}


def idle(communicator: Communicator) -> dict[str, Any]:
    """Bytes that this rank sends for a hundred small exchanges, and in a second in which nobody has anything to say."""
    communicator.allreduce_mean(torch.zeros(1))
    before = bytes_sent()
    for _ in range(100):
        communicator.allreduce_mean(torch.zeros(1))
    busy = bytes_sent()
    time.sleep(1)
    quiet = bytes_sent()
    communicator.allreduce_mean(torch.zeros(1))
    return {"exchanges": busy - before, "idle": quiet - busy}


def stall(communicator: Communicator) -> dict[str, Any]:
    """How long rank 0 waits for rank 1, which lives but does not come for a while."""
    communicator.allreduce_mean(torch.zeros(1))
    started = time.monotonic()
    try:
        if communicator.rank == 1:
            time.sleep(15)
        communicator.allreduce_mean(torch.ones(1))
    except Exception as error:  # noqa: BLE001  each library has its own
        return {"seconds": time.monotonic() - started, "error": str(error)}
    return {"seconds": None}


def accumulate(communicator: Communicator) -> dict[str, Any]:
    """Weights when several batches make a step; ranks begin with weights of their own, to be replaced."""
    return fitted(communicator, TableConfig(seed=communicator.rank), PASSES)


def sparse(communicator: Communicator) -> dict[str, Any]:
    """Weights when the gradient of the table is sparse: with a batch to a step, and with several."""
    config = TableConfig(sparse=True, seed=communicator.rank)
    return {str(passes): fitted(communicator, config, passes) for passes in (1, PASSES)}


def lazy(communicator: Communicator) -> dict[str, Any]:
    """Weights when the optimizer steps on the rows of a sparse gradient, with momentum and decay."""
    return fitted(communicator, TableConfig(sparse=True, seed=communicator.rank, optimizer="lazy_adamw"), PASSES)


WORK: dict[str, Callable[[Communicator], dict[str, Any]]] = {
    "steps": train_steps,
    "state": share_state,
    "accumulate": accumulate,
    "sparse": sparse,
    "lazy": lazy,
    "adasum": adasum,
    "idle": idle,
    "lost_peer": lose_a_peer,
    "stall": stall,
}


def main(kind: str, folder: Path, rank: int, address: str, works: list[str]) -> None:
    """Make the communicator and leave what each work returned in `folder`."""
    torch.set_num_threads(1)
    try:
        communicator: Communicator
        if kind == "single":
            communicator = SingleProcess()
        elif kind in HOROVOD:
            os.environ.update(HOROVOD[kind].environment())
            communicator = HorovodCommunicator(options=HOROVOD[kind])
        else:
            timeout_s = float(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"])
            communicator = TorchDistributedCommunicator.meet(address, rank, 2, timeout_s=timeout_s)
    except TowerlineError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))
        return
    for work in works:
        torch.save(WORK[work](communicator), folder / f"{work}-{rank}.pt")
    communicator.close()
    communicator.close()


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
    end_rank()
