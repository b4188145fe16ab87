"""The files that every model is kept in: weights (safetensors), configuration and vocabulary."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from pydantic import BaseModel
from torch import Tensor

from cluster.errors import TowerlineError
from train.vocabulary import Vocabulary

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "model.json"
VOCABULARY_FILE = "vocabulary.json"

Config = TypeVar("Config", bound=BaseModel)


def save_files(folder: Path, config: BaseModel, vocabulary: Vocabulary, weights: dict[str, Tensor]) -> None:
    """Write them into an existing folder."""
    save_weights(folder, config, weights)
    (folder / VOCABULARY_FILE).write_text(json.dumps(asdict(vocabulary), ensure_ascii=False), encoding="utf-8")


def save_weights(folder: Path, config: BaseModel, weights: dict[str, Tensor]) -> None:
    """Write all but the vocabulary, which lies elsewhere, into an existing folder."""
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2), encoding="utf-8")


def load_files(folder: Path, kind: type[Config]) -> tuple[Config, Vocabulary, dict[str, Tensor]]:
    """Read what `save_files` wrote, with a configuration of this kind.

    Raises:
        TowerlineError: a file is missing, cut short, or of another kind of model.
    """
    with _reading(folder / VOCABULARY_FILE) as path:
        vocabulary = Vocabulary.from_json(path.read_text(encoding="utf-8"))
    config, weights = load_weights(folder, kind)
    return config, vocabulary, weights


def load_weights(folder: Path, kind: type[Config]) -> tuple[Config, dict[str, Tensor]]:
    """Read what `save_weights` wrote. Raises TowerlineError as `load_files`."""
    with _reading(folder / CONFIG_FILE) as path:
        config = kind.model_validate_json(path.read_bytes())
    with _reading(folder / WEIGHTS_FILE) as path:
        return config, safetensors.torch.load_file(path)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise TowerlineError(f"{path} cannot be read: {error}; fetch or train the model again") from error
