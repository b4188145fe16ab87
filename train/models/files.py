"""The files that every model is kept in: weights (safetensors), configuration and vocabulary."""

import json
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
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2), encoding="utf-8")
    (folder / VOCABULARY_FILE).write_text(json.dumps(asdict(vocabulary), ensure_ascii=False), encoding="utf-8")


def load_files(folder: Path, kind: type[Config]) -> tuple[Config, Vocabulary, dict[str, Tensor]]:
    """Read what `save_files` wrote, with a configuration of this kind.

    Raises:
        TowerlineError: a file is missing, cut short, or of another kind of model.
    """
    reading = CONFIG_FILE
    try:
        config = kind.model_validate_json((folder / CONFIG_FILE).read_bytes())
        reading = VOCABULARY_FILE
        vocabulary = Vocabulary.from_json((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        reading = WEIGHTS_FILE
        return config, vocabulary, safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise TowerlineError(f"{folder / reading} cannot be read: {error}; fetch or train the model again") from error
