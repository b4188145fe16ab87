import os
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
    read_best_weights,
    read_checkpoint,
    write_checkpoint,
)
from train.loop import EpochResult, TrainingState


def _state(epoch: int = 3, best_epoch: int = 3) -> TrainingState:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    history = [EpochResult(epoch=i, loss=1.0 / (i + 1), seconds=0.5, samples_per_s=10) for i in range(epoch + 1)]
    best = {name: weight + 1 for name, weight in model.state_dict().items()} if best_epoch != epoch else None
    return TrainingState(
        epoch, model.state_dict(), optimizer.state_dict(), best_epoch, best or model.state_dict(), history
    )


@pytest.mark.parametrize("best_epoch", [1, 3])
def test_what_is_read_is_what_was_written(tmp_path: Path, best_epoch: int) -> None:
    state = _state(best_epoch=best_epoch)
    write_checkpoint(state, tmp_path / "run" / "checkpoint")
    read = read_checkpoint(tmp_path / "run" / "checkpoint")
    assert (read.epoch, read.best_epoch, read.history) == (3, best_epoch, state.history)
    torch.testing.assert_close(read.model, dict(state.model), rtol=0, atol=0)
    torch.testing.assert_close(read.best_model, dict(state.best_model), rtol=0, atol=0)
    torch.testing.assert_close(read.optimizer["state"], state.optimizer["state"], rtol=0, atol=0)
    assert read.optimizer["param_groups"] == state.optimizer["param_groups"]
    weights, epoch, history = read_best_weights(tmp_path / "run" / "checkpoint")
    torch.testing.assert_close(weights, dict(state.best_model), rtol=0, atol=0)
    assert (epoch, history) == (best_epoch, state.history)


def test_a_newer_checkpoint_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    write_checkpoint(_state(epoch=1, best_epoch=0), tmp_path / "checkpoint")
    write_checkpoint(_state(epoch=2, best_epoch=2), tmp_path / "checkpoint")
    assert read_checkpoint(tmp_path / "checkpoint").epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert BEST_MODEL_FILE not in {path.name for path in (tmp_path / "checkpoint").iterdir()}


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(_state(epoch=1), tmp_path / "checkpoint")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(_state(epoch=2), tmp_path / "checkpoint")
    assert read_checkpoint(tmp_path / "checkpoint").epoch == 1
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
    tied = TrainingState(0, {"a": weight, "b": weight, "c": weight[:2]}, state.optimizer, 0, {}, state.history[:1])
    write_checkpoint(tied, tmp_path / "checkpoint")
    stored = safetensors.torch.load_file(tmp_path / "checkpoint" / MODEL_FILE)
    torch.testing.assert_close(stored, {"a": weight, "b": weight, "c": weight[:2]})
