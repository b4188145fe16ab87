"""On the CPU, where it counts the same."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_training import gpu_figures, step_bytes
from benchmarks.training_task import BenchTask, BenchTaskConfig
from tests.train.planted import plant
from train.retrieval import RetrievalConfig, retrieval_task


def test_a_step_moves_more_than_its_weights(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    config = BenchTaskConfig(retrieval_task(planted.dataset, planted.folder, RetrievalConfig(batch_size=128)), 256)
    cpu, task = torch.device("cpu"), BenchTask(config)
    weights = sum(weight.numel() * weight.element_size() for weight in task.model.parameters())
    # AdamW reads weight, gradient and two moments, and writes all but the gradient.
    assert 7 * weights < step_bytes(task, cpu) < 10_000 * weights
    figures = gpu_figures(BenchTask(config), cpu, epochs=1, copied_bytes=2**22)
    assert figures["samples_per_s/plain/cpu"] > 0
    share = figures["gb_per_s/step/cpu"] / figures["gb_per_s/copy/cpu"]
    assert figures["bandwidth_share/cpu"] == pytest.approx(share)
