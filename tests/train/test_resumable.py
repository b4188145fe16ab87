"""Groups of ranks, without Ray, that are killed and gone on with by others."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.train.toy_task import ToyConfig, ToyTask, begun, hurry, lineage, undisturbed
from tests.train.training_ranks import ranks
from tests.waiting import wait_until
from train.checkpoint import Checkpoints, read_best_weights
from train.communicator import SingleProcess
from train.loop import EpochResult, FitConfig, fit
from train.progress import Follower
from train.resumable import fit_in_folder

EPOCHS = 3
FIT = FitConfig(epochs=EPOCHS, metric="error", mode="min")
CONFIG = ToyConfig(examples=47, batch_size=4, dropout=0.3)


def _train(kind: str, folder: Path, size: int, config: ToyConfig) -> None:
    with ranks(kind, folder, size, config, EPOCHS) as processes:
        assert [process.wait(300) for process in processes] == [0] * size


def _result(folder: Path) -> tuple[dict[str, torch.Tensor], list[tuple[float, dict[str, float]]]]:
    weights, _, history = read_best_weights(Checkpoints(folder).newest_folder())
    return weights, [(epoch.loss, epoch.metrics) for epoch in history]


@pytest.mark.parametrize("kind", ["horovod", pytest.param("torch", marks=pytest.mark.cluster)])
def test_two_ranks_that_were_killed_come_to_the_very_same(kind: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    _train(kind, whole, 2, CONFIG)
    config = ToyConfig(examples=47, batch_size=4, dropout=0.3, notes=cut, die_at=(1, 20))
    with ranks(kind, cut, 2, config, EPOCHS) as processes:
        assert processes[1].wait(300) == -signal.SIGKILL
        assert processes[0].wait(300) != 0
    _train(kind, cut, 2, config)
    assert begun(cut) == [(0, 0), (1, 20)]
    assert lineage(cut) == undisturbed(config, EPOCHS)
    (weights, history), (expected_weights, expected_history) = _result(cut), _result(whole)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)
    assert history == expected_history


@pytest.mark.cluster
def test_ranks_killed_at_random_and_gone_on_with_by_more_or_fewer(tmp_path: Path) -> None:
    """Sizes 2, 3, 1, 4 for a batch of at most 4, whose last one is of 3: shares are uneven, and some are empty.

    Undisturbed, the training would take twenty seconds and more, and each group has one at most.
    """
    chosen = random.Random(5)
    notes = tmp_path
    config = ToyConfig(notes=notes, examples=303, batch_size=4, step_s=0.1)
    for number, size in enumerate((2, 3, 1, 4), start=1):
        with ranks("horovod", tmp_path, size, config, EPOCHS) as processes:
            wait_until(lambda count=number: len(begun(notes)) == count, 300, f"the group of {size}")  # type: ignore[misc]
            victim = chosen.randrange(size)
            try:
                processes[victim].wait(chosen.uniform(0.2, 1.2))
            except subprocess.TimeoutExpired:
                processes[victim].send_signal(signal.SIGKILL)
            for process in processes:
                assert process.wait(300) != 0, "who lost a peer went on without it"
    hurry(notes)
    _train("horovod", tmp_path, 2, config)
    starts = begun(notes)
    assert len(starts) == 5
    assert starts == sorted(set(starts)), "a group did not go on where the one before it had come to"
    assert lineage(notes) == undisturbed(config, EPOCHS)
    alone = fit(ToyTask(ToyConfig(examples=303, batch_size=4)), SingleProcess(), FIT)
    _, history = _result(tmp_path)
    assert [loss for loss, _ in history] == pytest.approx([epoch.loss for epoch in alone.history], rel=1e-4)


@pytest.mark.cluster
def test_a_silent_rank_is_noticed_in_time(tmp_path: Path) -> None:
    """It lives, keeps its connections open and says nothing, as a node that was cut off."""
    config = ToyConfig(notes=tmp_path, examples=4_000, batch_size=4, step_s=0.1)
    with ranks("horovod", tmp_path, 2, config, EPOCHS, timeout_s=10) as processes:
        wait_until(lambda: len(list(tmp_path.glob("rank=*"))) == 2, 300, "both ranks")
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(300) != 0
        assert processes[1].poll() is None


def test_an_epoch_is_told_of_though_its_writer_was_killed_before(tmp_path: Path) -> None:
    one = FitConfig(epochs=1, metric="error", mode="min")
    fit_in_folder(ToyTask(CONFIG), SingleProcess(), one, folder=tmp_path, checkpoint_s=0)
    progress = tmp_path / "progress.jsonl"
    progress.write_bytes(progress.read_bytes()[:30])
    seen: list[EpochResult] = []
    follower = Follower(tmp_path, on_any=seen.append)
    assert seen == []
    fit_in_folder(ToyTask(CONFIG), SingleProcess(), FIT, folder=tmp_path, checkpoint_s=0, on_epoch=follower.catch_up)
    assert [epoch.epoch for epoch in seen] == [0, 1, 2]


def test_a_checkpoint_that_was_cut_short_costs_time_and_nothing_else(tmp_path: Path) -> None:
    whole = fit(ToyTask(CONFIG), SingleProcess(), FIT)
    config = ToyConfig(examples=47, batch_size=4, dropout=0.3, notes=tmp_path)
    one = FitConfig(epochs=1, metric="error", mode="min")
    fit_in_folder(ToyTask(config), SingleProcess(), one, folder=tmp_path, checkpoint_s=0)
    newest = Checkpoints(tmp_path).newest_folder() / "model.safetensors"
    os.truncate(newest, newest.stat().st_size - 1)
    fit_in_folder(ToyTask(config), SingleProcess(), FIT, folder=tmp_path, checkpoint_s=0)
    weights, history = _result(tmp_path)
    torch.testing.assert_close(weights, whole.weights, rtol=0, atol=0)
    assert [loss for loss, _ in history] == [epoch.loss for epoch in whole.history]
