"""A loop that anyone would write, in a process of its own: `python -m benchmarks.plain_training TASK EPOCHS`.

What our loop and Ray add to it is what `benchmarks.training` wants to know.
"""

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_task import BenchTask, peak_mb


def train(task: BenchTask, epochs: int, device: torch.device) -> dict[str, Any]:
    """Train and say how long each epoch took, and how much of that was computing."""
    model, optimizer = task.model.to(device).train(), task.optimizer()
    seconds, cpu_seconds = [], []
    for epoch in range(epochs):
        began, computed, losses = time.perf_counter(), time.process_time(), []
        for share in task.order.shares(epoch, 0, 1):
            optimizer.zero_grad()
            loss = model(task.batch(share).to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean_loss = float(torch.stack(losses).mean())  # This waits for the device, too.
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - computed)
    return {
        "examples": len(task.order),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loss": mean_loss,
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    built = BenchTask(pickle.loads(Path(sys.argv[1]).read_bytes()))
    print(json.dumps(train(built, int(sys.argv[2]), torch.device("cpu"))))
