"""The candidates of several sources as one list: reciprocal rank fusion, or weights learnt from what was chosen.

Each source names its first items, and then scores all that were named. A source says nothing by items that it cannot
tell apart: they share the last of their places, so that one that knows nothing about a user moves nobody.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from cluster.errors import TowerlineError
from train.index import Codes, Floats
from train.models.files import CONFIG_FILE
from train.models.softmax_regression import fit_softmax_regression
from train.models.sources import KeptSource, load_source
from train.vocabulary import UNKNOWN, Vocabulary

Doubles = npt.NDArray[np.float64]
WEIGHTS_FILE = "blend.json"
ROWS_AT_ONCE = 1024


class BlendConfig(BaseModel):
    """How lists become one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["blend"] = "blend"
    method: Literal["reciprocal_rank", "learnt"] = "reciprocal_rank"
    """Reciprocal rank fusion, or softmax regression on lists of which the chosen item is known (`Blend.learn`)."""
    depth: PositiveInt = 100
    """Items that each source names."""
    rank_constant: PositiveFloat = 60.0
    """k: place r is worth 1 / (k + r)."""
    l2: NonNegativeFloat = 10.0
    """Penalty on the squares of the learnt weights, over the number of lists."""


class Blend:
    """Several candidate sources (train/recommender.py) as one."""

    def __init__(self, sources: Mapping[str, KeptSource], config: BlendConfig | None = None) -> None:
        """`sources`: by a name of their own, which is also that of their folder.

        Raises:
            TowerlineError: there are none.
        """
        if not sources:
            raise TowerlineError("sources is empty; a blend needs one or more")
        self.sources = dict(sources)
        self.config = config or BlendConfig()
        self.learnt: dict[str, tuple[float, float]] | None = None
        """By source: the weights of its standardised score and of its reciprocal rank."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Whose codes are spoken.

        Raises:
            TowerlineError: the sources' codes do not mean the same items.
        """
        (first, shared), *others = ((name, source.vocabulary) for name, source in self.sources.items())
        for name, vocabulary in others:
            if vocabulary is not shared and vocabulary.items != shared.items:
                raise TowerlineError(
                    f"sources {first!r} and {name!r} were fitted with different vocabularies ({shared.num_items} and "
                    f"{vocabulary.num_items} items); fit them on the same data set"
                )
        return shared

    def fit(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Fit every source."""
        for source in self.sources.values():
            source.fit(events, vocabulary)

    def learn(self, rows: pl.DataFrame, exclude: list[Codes], targets: list[Codes]) -> None:
        """Learn the weights from what was chosen at B moments that no source was fitted on (validation events).

        Raises:
            TowerlineError: none of the targets was named by any source.
        """
        candidates_BK = self._candidates(rows, exclude)
        chosen_BK = np.stack([np.isin(codes, met) for codes, met in zip(candidates_BK, targets, strict=True)])
        chosen_BK &= candidates_BK != UNKNOWN
        if not chosen_BK.any():
            raise TowerlineError(
                f"the sources named none of the items that {rows.height} rows chose; raise depth "
                f"({self.config.depth}) or learn from more rows"
            )
        signals_BKF = self._signals(rows, candidates_BK)
        weights_F = fit_softmax_regression(signals_BKF, candidates_BK != UNKNOWN, chosen_BK, self.config.l2)
        pairs = weights_F.reshape(-1, 2).tolist()
        self.learnt = {name: (score, rank) for name, (score, rank) in zip(self.sources, pairs, strict=True)}

    def recommend(self, rows: pl.DataFrame, exclude: list[Codes], count: int) -> Codes:
        """The best `count` items (B, K) of all that the sources name; `UNKNOWN` behind them."""
        ranked_BK = np.full((rows.height, min(count, self.vocabulary.num_items)), UNKNOWN, dtype=np.int64)
        for start in range(0, rows.height, ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            candidates_BK = self._candidates(rows[some], exclude[some])
            best_first_BK = np.argsort(-self.score(rows[some], candidates_BK), axis=1, kind="stable")
            found_BK = np.take_along_axis(candidates_BK, best_first_BK, axis=1)[:, : ranked_BK.shape[1]]
            ranked_BK[some, : found_BK.shape[1]] = found_BK
        return ranked_BK

    def score(self, rows: pl.DataFrame, candidates_BK: Codes) -> Floats:
        """Blended scores (B, K) among these K candidates of each of B rows; -inf for `UNKNOWN`.

        Raises:
            TowerlineError: the weights were to be learnt, and were not.
        """
        signals_BKF = self._signals(rows, candidates_BK)
        scores_BK = (signals_BKF @ self._weights()).astype(np.float32)
        return np.where(candidates_BK == UNKNOWN, np.float32(-np.inf), scores_BK)

    def similar(self, items: Codes, count: int) -> Codes:
        """The best `count` items (N, K) by reciprocal rank fusion of what each source finds alike."""
        depth = max(count, self.config.depth)
        lists = [source.similar(items, depth) for source in self.sources.values()]
        candidates_NK = union(lists)
        scores_NK = np.zeros(candidates_NK.shape)
        for listed_NK in lists:
            found_NKL = candidates_NK[:, :, np.newaxis] == listed_NK[:, np.newaxis, :]
            places_NK = 1 + found_NKL.argmax(axis=2)
            scores_NK += found_NKL.any(axis=2) / (self.config.rank_constant + places_NK)
        scores_NK = np.where(candidates_NK == UNKNOWN, -np.inf, scores_NK)
        best_first_NK = np.argsort(-scores_NK, axis=1, kind="stable")
        return np.take_along_axis(candidates_NK, best_first_NK, axis=1)[:, :count]

    def save(self, folder: Path) -> None:
        """Write all sources, each into a folder of its name, and the weights into an existing folder."""
        for name, source in self.sources.items():
            (folder / name).mkdir()
            source.save(folder / name)
        (folder / CONFIG_FILE).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")
        kept = {"sources": list(self.sources), "learnt": self.learnt}
        (folder / WEIGHTS_FILE).write_text(json.dumps(kept), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, load: Callable[[Path], KeptSource] = load_source) -> Self:
        """Read what `save` wrote; `load` reads a source."""
        kept = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
        config = BlendConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
        blend = cls({name: load(folder / name) for name in kept["sources"]}, config)
        if kept["learnt"] is not None:
            blend.learnt = {name: (score, rank) for name, (score, rank) in kept["learnt"].items()}
        return blend

    def _candidates(self, rows: pl.DataFrame, exclude: list[Codes]) -> Codes:
        """All that the sources name for each row (B, K), by code, `UNKNOWN` between them."""
        return union([source.recommend(rows, exclude, self.config.depth) for source in self.sources.values()])

    def _signals(self, rows: pl.DataFrame, candidates_BK: Codes) -> Doubles:
        """Standardised score and reciprocal rank (B, K, 2 x sources), source by source."""
        present_BK = candidates_BK != UNKNOWN
        signals = []
        for source in self.sources.values():
            scores_BK = np.where(present_BK, source.score(rows, candidates_BK).astype(np.float64), -np.inf)
            signals.append(_standardized(scores_BK, present_BK))
            signals.append(reciprocal_ranks(scores_BK, self.config.depth, self.config.rank_constant))
        return np.stack(signals, axis=2)

    def _weights(self) -> Doubles:
        if self.config.method == "reciprocal_rank":
            return np.tile([0.0, 1.0], len(self.sources))
        if self.learnt is None:
            raise TowerlineError("method is 'learnt' and nothing was learnt; call learn() with validation rows first")
        return np.array([weight for name in self.sources for weight in self.learnt[name]])


def union(lists: Sequence[Codes]) -> Codes:
    """What some lists (B, K) name (B, sum of K): each code once in each row, ascending, with `UNKNOWN` between them."""
    codes_BK = np.sort(np.concatenate(lists, axis=1), axis=1)
    codes_BK[:, 1:][codes_BK[:, 1:] == codes_BK[:, :-1]] = UNKNOWN
    return codes_BK


def reciprocal_ranks(scores_BK: Doubles | Floats, depth: int, constant: float) -> Doubles:
    """(k + 1) / (k + place): 1 for the first place, 0 beyond the depth and for -inf."""
    places_BK = places_of(scores_BK)
    named_BK = (places_BK <= depth) & (scores_BK > -np.inf)
    return np.where(named_BK, (constant + 1) / (constant + places_BK), 0.0)


def places_of(scores_BK: Doubles | Floats) -> Codes:
    """The place of each score in its row, from 1; equal scores share the last of their places."""
    best_first_BK = np.argsort(-scores_BK, axis=1, kind="stable")
    sorted_BK = np.take_along_axis(scores_BK, best_first_BK, axis=1)
    is_last_BK = np.ones(scores_BK.shape, dtype=np.bool_)
    is_last_BK[:, :-1] = sorted_BK[:, :-1] != sorted_BK[:, 1:]
    numbers_BK = np.where(is_last_BK, np.arange(1, scores_BK.shape[1] + 1), scores_BK.shape[1])
    shared_BK = np.minimum.accumulate(numbers_BK[:, ::-1], axis=1)[:, ::-1]
    places_BK = np.empty(scores_BK.shape, dtype=np.int64)
    np.put_along_axis(places_BK, best_first_BK, shared_BK, axis=1)
    return places_BK


def _standardized(scores_BK: Doubles, present_BK: npt.NDArray[np.bool_]) -> Doubles:
    """Zero mean and unit deviation over the candidates of each row; all 0 where they are the same."""
    count_B1 = np.maximum(present_BK.sum(axis=1, keepdims=True), 1)
    filled_BK = np.where(present_BK, scores_BK, 0.0)
    centred_BK = np.where(present_BK, filled_BK - filled_BK.sum(axis=1, keepdims=True) / count_B1, 0.0)
    deviation_B1 = np.sqrt((centred_BK**2).sum(axis=1, keepdims=True) / count_B1)
    return centred_BK / np.where(deviation_B1 > 0, deviation_B1, 1.0)
