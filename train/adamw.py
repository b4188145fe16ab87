"""AdamW without torch's compiler.

torch's optimizers import the compiler when they are first used, to tell it to stay out of them: seconds of a core in
every worker that starts. Nothing here is compiled.
"""

import inspect
from typing import Any

import torch
from torch.optim import Adam, Optimizer


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, step for step."""

    add_param_group: Any = inspect.unwrap(Optimizer.add_param_group)
    state_dict: Any = inspect.unwrap(Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad: Any = inspect.unwrap(Optimizer.zero_grad)
    step: Any = torch.no_grad()(inspect.unwrap(Adam.step))
