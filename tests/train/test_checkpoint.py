import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.errors import TowerlineError
from train.checkpoint import (
    BEST_MODEL_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    PROGRESS_FILE,
    Checkpoints,
    read_best_weights,
    read_checkpoint,
    write_checkpoint,
)
from train.epoch import Position
from train.loop import EpochResult, TrainingState


def _state(epoch: int = 4, cursor: int = 0, best_epoch: int | None = 3) -> TrainingState:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    best: dict[str, torch.Tensor] = {}
    if best_epoch is not None:
        newest = cursor == 0 and best_epoch == epoch - 1
        best = {name: weight if newest else weight + 1 for name, weight in model.state_dict().items()}
    return TrainingState(
        position=Position(epoch, cursor, steps=cursor // 4, loss_sum=0.1 * cursor, seconds=1.5, waited=0.25),
        examples="0123456789abcdef",
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        best_epoch=best_epoch,
        best_model=best,
        history=[
            EpochResult(epoch=i, loss=1.0 / (i + 1), seconds=0.5, samples_per_s=10, data_wait=0.1) for i in range(epoch)
        ],
    )


@pytest.mark.parametrize("cursor", [0, 12])
@pytest.mark.parametrize("best_epoch", [1, 3])
def test_what_is_read_is_what_was_written(tmp_path: Path, best_epoch: int, cursor: int) -> None:
    state = _state(cursor=cursor, best_epoch=best_epoch)
    write_checkpoint(state, tmp_path / "run" / "checkpoint")
    read = read_checkpoint(tmp_path / "run" / "checkpoint")
    assert (read.position, read.best_epoch, read.history) == (state.position, best_epoch, state.history)
    assert read.examples == state.examples
    torch.testing.assert_close(read.model, dict(state.model), rtol=0, atol=0)
    torch.testing.assert_close(read.best_model, dict(state.best_model), rtol=0, atol=0)
    torch.testing.assert_close(read.optimizer["state"], state.optimizer["state"], rtol=0, atol=0)
    assert read.optimizer["param_groups"] == state.optimizer["param_groups"]
    weights, epoch, history = read_best_weights(tmp_path / "run" / "checkpoint")
    torch.testing.assert_close(weights, dict(state.best_model), rtol=0, atol=0)
    assert (epoch, history) == (best_epoch, state.history)


def test_before_the_first_epoch_is_done_there_is_nothing_to_keep(tmp_path: Path) -> None:
    write_checkpoint(_state(epoch=0, cursor=8, best_epoch=None), tmp_path)
    read = read_checkpoint(tmp_path)
    assert (read.position.cursor, read.best_epoch, read.best_model, read.history) == (8, None, {}, [])
    with pytest.raises(TowerlineError, match=f"{tmp_path}: no epoch was finished yet"):
        read_best_weights(tmp_path)


def test_a_newer_checkpoint_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    write_checkpoint(_state(epoch=2, best_epoch=0), tmp_path / "checkpoint")
    write_checkpoint(_state(epoch=3, best_epoch=2), tmp_path / "checkpoint")
    assert read_checkpoint(tmp_path / "checkpoint").position.epoch == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert BEST_MODEL_FILE not in {path.name for path in (tmp_path / "checkpoint").iterdir()}


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(_state(epoch=1, best_epoch=0), tmp_path / "checkpoint")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(_state(epoch=2, best_epoch=0), tmp_path / "checkpoint")
    assert read_checkpoint(tmp_path / "checkpoint").position.epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, PROGRESS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"half"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    write_checkpoint(_state(), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TowerlineError, match=rf"{name}: not a readable checkpoint .* delete {tmp_path}"):
        read_checkpoint(tmp_path)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    for cursor in (4, 8, 12):
        checkpoints.write(_state(cursor=cursor))
    checkpoints.write(_state(epoch=5, cursor=0))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "checkpoint_000004_000000000012",
        "checkpoint_000005_000000000000",
    ]
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.position.epoch, newest.position.cursor) == (5, 0)
    assert checkpoints.newest_folder().name == "checkpoint_000005_000000000000"


@pytest.mark.parametrize("name", [MODEL_FILE, BEST_MODEL_FILE, OPTIMIZER_FILE, PROGRESS_FILE])
def test_one_that_was_cut_short_is_passed_over(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(_state(cursor=4))
    cut = checkpoints.write(_state(cursor=8))
    _cut_short(cut / name)
    (tmp_path / ".checkpoint_000004_000000000012.tmp-0badcafe").mkdir()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.position.cursor == 4
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000004_000000000004"]
    assert f"{cut / name}: not a readable checkpoint" in caplog.text
    assert "training goes on from checkpoint_000004_000000000004" in caplog.text


def test_with_none_that_can_be_read_nothing_is_trained_or_deleted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    paths = [checkpoints.write(_state(cursor=cursor)) for cursor in (4, 8)]
    for path in paths:
        _cut_short(path / OPTIMIZER_FILE)
    with pytest.raises(TowerlineError, match=rf"{paths[1] / OPTIMIZER_FILE}: not a readable checkpoint"):
        checkpoints.newest()
    assert sorted(tmp_path.iterdir()) == paths


def test_optimizer_file_cannot_run_code(tmp_path: Path) -> None:
    write_checkpoint(_state(), tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/evil",)

    torch.save(Evil(), tmp_path / OPTIMIZER_FILE)
    with pytest.raises(TowerlineError, match=OPTIMIZER_FILE):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(4, 2)
    state = _state()
    tied = replace(state, model={"a": weight, "b": weight, "c": weight[:2]})
    write_checkpoint(tied, tmp_path / "checkpoint")
    stored = safetensors.torch.load_file(tmp_path / "checkpoint" / MODEL_FILE)
    torch.testing.assert_close(stored, {"a": weight, "b": weight, "c": weight[:2]})
