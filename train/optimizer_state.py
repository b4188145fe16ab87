"""Every rank gets the optimizer state of rank 0."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from train.communicator import Communicator


@dataclass(frozen=True)
class _TensorLike:
    """Stands for a tensor in an optimizer's state while its shape travels."""

    shape: torch.Size
    dtype: torch.dtype
    on_cpu: bool


def share_optimizer_state(
    communicator: "Communicator", optimizer: Optimizer, broadcast_tensor: Callable[[torch.Tensor], None]
) -> None:
    """Give every rank rank 0's optimizer state, whatever the others hold.

    Horovod's `broadcast_optimizer_state` is not used: it makes missing state by a step with zero gradients, and such
    a step changes the parameters when there is weight decay.
    """
    own = optimizer.state_dict()
    shapes = {
        parameter: {name: _shape_of(value) for name, value in values.items()}
        for parameter, values in own["state"].items()
    }
    shapes, groups = communicator.broadcast((shapes, own["param_groups"]))
    if not shapes and not own["state"]:
        return
    state: dict[Any, dict[str, Any]] = {}
    for parameter, values in shapes.items():
        state[parameter] = {}
        for name, value in values.items():
            state[parameter][name] = value
            if isinstance(value, _TensorLike):
                tensor = own["state"][parameter][name] if communicator.rank == 0 else _empty(value, communicator)
                broadcast_tensor(tensor)
                state[parameter][name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _shape_of(value: object) -> object:
    return (
        _TensorLike(value.shape, value.dtype, value.device.type == "cpu") if isinstance(value, torch.Tensor) else value
    )


def _empty(like: _TensorLike, communicator: "Communicator") -> torch.Tensor:
    """Adam counts its steps on the CPU also when the weights are on a GPU."""
    return torch.empty(like.shape, dtype=like.dtype, device="cpu" if like.on_cpu else communicator.device)
