"""AdamW that also steps on the sparse gradient of an embedding table, at the rows that a batch touched alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train.adamw import AdamW


class LazyAdamW(AdamW):
    """`torch.optim.AdamW`, whose parameters may have sparse gradients.

    Of such a parameter, only the rows in the gradient are decayed and moved, and only their moments change: the cost of
    a step is that of the batch, whatever the size of the table. With a row that is in every gradient it is AdamW; one
    that comes seldom keeps its momentum meanwhile instead of being moved on by it (`torch.optim.SparseAdam` has the
    same rule, without weight decay). Steps are counted for the table as a whole. One optimizer for all parameters, so
    the loop, the communicators and the checkpoints need not know; its state dict is AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As `AdamW.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    gradients[parameter] = parameter.grad
                    self._step_rows(parameter, parameter.grad.coalesce(), group)
                    parameter.grad = None  # AdamW passes over it.
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _step_rows(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        steps, rate, (beta1, beta2) = state["step"].item(), float(group["lr"]), group["betas"]
        rows_U, gradient_UD = gradient.indices()[0], gradient.values()
        first_UD = state["exp_avg"][rows_U].lerp_(gradient_UD, 1 - beta1)
        second_UD = state["exp_avg_sq"][rows_U].mul_(beta2).addcmul_(gradient_UD, gradient_UD, value=1 - beta2)
        state["exp_avg"][rows_U], state["exp_avg_sq"][rows_U] = first_UD, second_UD
        spread_UD = second_UD.sqrt().div_((1 - beta2**steps) ** 0.5).add_(group["eps"])
        kept_UD = parameter[rows_U] * (1 - rate * group["weight_decay"])
        parameter[rows_U] = kept_UD.addcdiv_(first_UD, spread_UD, value=-rate / (1 - beta1**steps))
