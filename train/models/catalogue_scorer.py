"""What candidate sources that score the whole catalogue share: ranking, scores of candidates, files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel
from torch import Tensor

from cluster.errors import TowerlineError
from train.index import Codes, Floats, top_items, without
from train.models.files import load_files, load_weights, save_files, save_weights
from train.vocabulary import UNKNOWN, Vocabulary

SCORES_AT_ONCE = 2**25
"""Rows times items that are scored at a time: 128 MiB."""

Config = TypeVar("Config", bound=BaseModel)


class CatalogueScorer(ABC, Generic[Config]):
    """A `CandidateSource` (train/recommender.py) made of one function: feature rows to scores of every item."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._vocabulary: Vocabulary | None = None

    def fit(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Learn from the training events."""
        self.learn(events, vocabulary)
        self._vocabulary = vocabulary

    @abstractmethod
    def learn(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """What `fit` does first."""

    @abstractmethod
    def scores(self, rows: pl.DataFrame) -> Floats:
        """Scores (B, I + 1) of all item codes for B feature rows, in an array of the caller's own."""

    @abstractmethod
    def similarities(self, items: Codes) -> Floats:
        """How alike (N, I + 1) all item codes are to each of N, in an array of the caller's own; -inf for "not"."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What was learnt."""

    @abstractmethod
    def take(self, weights: dict[str, Tensor]) -> None:
        """Become what `weights` was called on."""

    @classmethod
    @abstractmethod
    def config_kind(cls) -> type[Config]:
        """The class of `config`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Whose codes are spoken.

        Raises:
            TowerlineError: nothing was learnt yet.
        """
        if self._vocabulary is None:
            raise TowerlineError(f"{type(self).__name__} has learnt nothing yet; call fit() or load() first")
        return self._vocabulary

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The `count` items (B, K) with the highest scores that are not excluded."""
        chunks = self._chunks(rows.height)
        ranked = [_best_allowed(self.scores(rows[some]), exclude[some], count) for some in chunks]
        return self._joined(ranked, count)

    def score(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        """Scores (B, K) of K candidates for each of B rows; -inf for `UNKNOWN`."""
        scores_BK = np.empty(candidates_BK.shape, dtype=np.float32)
        for some in self._chunks(rows.height):
            scores_BK[some] = np.take_along_axis(self.scores(rows[some]), candidates_BK[some], axis=1)
        scores_BK[candidates_BK == UNKNOWN] = -np.inf
        return scores_BK

    def similar(self, items: Codes, count: int) -> Codes:
        """The `count` items (N, K) most like each of N, never itself; `UNKNOWN` where no more are known to be alike."""
        itself = list(items[:, np.newaxis])
        chunks = self._chunks(len(items))
        ranked = [_best_allowed(self.similarities(items[some]), itself[some], count) for some in chunks]
        return self._joined(ranked, count)

    def save(self, folder: Path) -> None:
        """Write what was learnt into an existing folder."""
        save_files(folder, self.config, self.vocabulary, self.weights())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        config, vocabulary, weights = load_files(folder, cls.config_kind())
        return cls._with(config, weights, vocabulary)

    def save_beside(self, folder: Path) -> None:
        """Write what was learnt, without the vocabulary, into an existing folder."""
        save_weights(folder, self.config, self.weights())

    @classmethod
    def load_beside(cls, folder: Path, vocabulary: Vocabulary) -> Self:
        """Read what `save_beside` wrote; `vocabulary`: the one it was fitted with."""
        return cls._with(*load_weights(folder, cls.config_kind()), vocabulary)

    @classmethod
    def _with(cls, config: Config, weights: dict[str, Tensor], vocabulary: Vocabulary) -> Self:
        source = cls(config)
        source.take(weights)
        source._vocabulary = vocabulary
        return source

    def _chunks(self, rows: int) -> list[slice]:
        step = max(1, SCORES_AT_ONCE // (self.vocabulary.num_items + 1))
        return [slice(start, start + step) for start in range(0, rows, step)]

    def _joined(self, ranked: list[Codes], count: int) -> Codes:
        nothing = np.empty((0, min(count, self.vocabulary.num_items)), dtype=np.int64)
        return np.concatenate([nothing, *ranked])


def last_if_never_met(scores_BI: Floats, met_I: npt.NDArray[np.bool_]) -> Floats:
    """In place: an item of which nothing was learnt is no better for anybody than the worst of the others."""
    scores_BI[:, ~met_I] = scores_BI[:, met_I].min(axis=1, keepdims=True)
    return scores_BI


def _best_allowed(scores_BI: Floats, exclude: Sequence[Codes], count: int) -> Codes:
    assert len(exclude) == len(scores_BI)
    return top_items(without(scores_BI, exclude), count)[0]
