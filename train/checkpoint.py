"""A `TrainingState` in a folder: weights as safetensors, the optimizer by torch, the rest as JSON."""

import json
import os
import pickle
import shutil
import uuid
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from cluster.errors import TowerlineError
from train.loop import EpochResult, TrainingState

MODEL_FILE = "model.safetensors"
BEST_MODEL_FILE = "best_model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
PROGRESS_FILE = "progress.json"


def write_checkpoint(state: TrainingState, folder: Path) -> None:
    """Write `state` so that `folder` is either complete or as it was before, also after a crash."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir()
    try:
        safetensors.torch.save_file(_storable(state.model), unfinished / MODEL_FILE)
        if state.best_epoch != state.epoch:
            safetensors.torch.save_file(_storable(state.best_model), unfinished / BEST_MODEL_FILE)
        torch.save(state.optimizer, unfinished / OPTIMIZER_FILE)
        progress = {
            "epoch": state.epoch,
            "best_epoch": state.best_epoch,
            "history": [result.model_dump() for result in state.history],
        }
        (unfinished / PROGRESS_FILE).write_text(json.dumps(progress, indent=1))
        for path in unfinished.iterdir():
            _flush_to_disk(path)
        _replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def read_checkpoint(folder: Path) -> TrainingState:
    """The state that `write_checkpoint` wrote; tensors on the CPU.

    Raises:
        TowerlineError: a file is missing or broken.
    """
    history, epoch, best_epoch = _read_progress(folder)
    model = _read_weights(folder / MODEL_FILE)
    optimizer_file = folder / OPTIMIZER_FILE
    try:
        optimizer: dict[str, Any] = torch.load(optimizer_file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise _unreadable(optimizer_file, error) from error
    best_model = model if best_epoch == epoch else _read_weights(folder / BEST_MODEL_FILE)
    return TrainingState(epoch, model, optimizer, best_epoch, best_model, history)


def read_best_weights(folder: Path) -> tuple[dict[str, torch.Tensor], int, list[EpochResult]]:
    """The weights to keep, their epoch and the history, without the optimizer.

    Raises:
        TowerlineError: a file is missing or broken.
    """
    history, epoch, best_epoch = _read_progress(folder)
    weights = _read_weights(folder / (MODEL_FILE if best_epoch == epoch else BEST_MODEL_FILE))
    return weights, best_epoch, history


def _read_progress(folder: Path) -> tuple[list[EpochResult], int, int]:
    path = folder / PROGRESS_FILE
    try:
        progress = json.loads(path.read_text())
        history = [EpochResult.model_validate(result) for result in progress["history"]]
        return history, int(progress["epoch"]), int(progress["best_epoch"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise _unreadable(path, error) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> TowerlineError:
    return TowerlineError(f"{path}: not a readable checkpoint ({error}); delete {path.parent} and train again")


def _storable(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous and with no storage shared (tied weights), as safetensors wants it."""
    seen: set[int] = set()
    storable = {}
    for name, weight in weights.items():
        tensor = weight.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        storable[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return storable


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; a folder cannot be replaced in one step, so the old one steps aside."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)
