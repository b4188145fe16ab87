"""That AdamW is torch's, and leaves torch's compiler alone."""

import copy
import subprocess
import sys

import torch
from torch import nn

from train.adamw import AdamW

STEPS = """
import sys

import torch

from train.adamw import AdamW

layer = torch.nn.Linear(3, 2)
optimizer = AdamW(layer.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_it_steps_as_torchs_does() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    kinds = (AdamW, torch.optim.AdamW)
    optimizers = [kind(layer.parameters(), lr=0.1, weight_decay=0.1) for kind, layer in zip(kinds, layers, strict=True)]
    for step in range(4):
        inputs = torch.randn(5, 3)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(inputs).square().mean().backward()
            optimizer.step()
        if step == 1:
            optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict(), rtol=0, atol=0)


def test_it_does_not_import_the_compiler() -> None:
    """In a process of its own: in this one, someone else may have."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "False\n", done.stderr
