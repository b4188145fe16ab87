"""The checkpoints of a run: weights as safetensors, the optimizer by torch, the rest as JSON.

Of each run the newest two are kept. One that was cut short, by a full disk or a lost node, is passed over with a
warning, and training goes on from the one before; it comes to the same, only later.
"""

import json
import logging
import os
import pickle
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from cluster.errors import TowerlineError
from train.epoch import Position
from train.loop import EpochResult, TrainingState

MODEL_FILE = "model.safetensors"
BEST_MODEL_FILE = "best_model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
PROGRESS_FILE = "progress.json"
KEPT = 2
"""Checkpoints of a run that are kept."""

logger = logging.getLogger(__name__)


class BrokenCheckpointError(TowerlineError):
    """A file of a checkpoint is missing or cut short."""

    def __init__(self, path: Path, reason: Exception) -> None:
        self.folder = path.parent
        self.what = f"{path}: not a readable checkpoint ({reason})"
        super().__init__(f"{self.what}; delete {path.parent} and train again")


class Checkpoints:
    """Those in the folder of a run; one process writes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, state: TrainingState) -> Path:
        """Add a checkpoint and delete those that are not kept any more; returns its folder."""
        path = self._folder / f"checkpoint_{state.position.epoch:06d}_{state.position.cursor:012d}"
        write_checkpoint(state, path)
        for old in self._oldest_first()[:-KEPT]:
            shutil.rmtree(old)
        return path

    def newest(self) -> TrainingState | None:
        """The newest one that can be read; none if there are none. Takes away what a writer that was killed left.

        Raises:
            TowerlineError: there are checkpoints, but none can be read.
        """
        for unfinished in self._folder.glob(".checkpoint_*"):
            shutil.rmtree(unfinished)
        found = self._oldest_first()
        errors: list[BrokenCheckpointError] = []
        for path in reversed(found):
            try:
                state = read_checkpoint(path)
            except BrokenCheckpointError as error:
                errors.append(error)
                continue
            for passed_over in errors:
                logger.warning("%s; training goes on from %s", passed_over.what, path.name)
                shutil.rmtree(passed_over.folder)
            return state
        if errors:
            raise errors[0]
        return None

    def newest_folder(self) -> Path:
        """The folder of the newest one; there must be one."""
        return self._oldest_first()[-1]

    def _oldest_first(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint_*"))


def write_checkpoint(state: TrainingState, folder: Path) -> None:
    """Write `state` so that `folder` is either complete or as it was before, also after a crash."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir()
    try:
        safetensors.torch.save_file(_storable(state.model), unfinished / MODEL_FILE)
        if state.best_epoch is not None and not _best_is_newest(state.best_epoch, state.position):
            safetensors.torch.save_file(_storable(state.best_model), unfinished / BEST_MODEL_FILE)
        torch.save(state.optimizer, unfinished / OPTIMIZER_FILE)
        progress = {
            "position": asdict(state.position),
            "examples": state.examples,
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
    state = _read_progress(folder)
    state.model.update(_read_weights(folder / MODEL_FILE))
    state.best_model.update(_read_best(folder, state, state.model))
    optimizer_file = folder / OPTIMIZER_FILE
    try:
        state.optimizer.update(torch.load(optimizer_file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise BrokenCheckpointError(optimizer_file, error) from error
    return state


def read_best_weights(folder: Path) -> tuple[dict[str, torch.Tensor], int, list[EpochResult]]:
    """The weights to keep, their epoch and the history, without the optimizer.

    Raises:
        TowerlineError: a file is missing or broken, or no epoch was finished.
    """
    state = _read_progress(folder)
    if state.best_epoch is None:
        raise TowerlineError(f"{folder}: no epoch was finished yet; train on under the same run name")
    return _read_best(folder, state, None), state.best_epoch, state.history


def _best_is_newest(best_epoch: int, position: Position) -> bool:
    """Whether the weights to keep are those at `position`."""
    return position.cursor == 0 and best_epoch == position.epoch - 1


def _read_progress(folder: Path) -> TrainingState:
    """All but the tensors."""
    path = folder / PROGRESS_FILE
    try:
        progress: dict[str, Any] = json.loads(path.read_text())
        return TrainingState(
            position=Position(**progress["position"]),
            examples=progress["examples"],
            model={},
            optimizer={},
            best_epoch=progress["best_epoch"],
            history=[EpochResult.model_validate(result) for result in progress["history"]],
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise BrokenCheckpointError(path, error) from error


def _read_best(folder: Path, state: TrainingState, model: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """The weights to keep; `model`: those at the checkpoint's position, if they were read already."""
    if state.best_epoch is None:
        return {}
    if _best_is_newest(state.best_epoch, state.position):
        return model if model is not None else _read_weights(folder / MODEL_FILE)
    return _read_weights(folder / BEST_MODEL_FILE)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BrokenCheckpointError(path, error) from error


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
